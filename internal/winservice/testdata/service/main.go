//go:build windows

// Command service is the tiny service that the tests of winservice install under Wine.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/windows/registry"

	"holdfast/internal/winservice"
)

const name = "HoldfastTest"

func main() {
	// Not IsService: Wine's session ids make it say no.
	if len(os.Args) > 1 && os.Args[1] == "run" {
		os.Exit(service())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 75*time.Second)
	defer cancel()
	for _, verb := range os.Args[1:] {
		if err := do(ctx, verb); err != nil {
			fmt.Printf("%s: error: %v\n", verb, err)
			os.Exit(1)
		}
	}
}

func do(ctx context.Context, verb string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	switch verb {
	case "install", "install-failing":
		return winservice.Install(ctx, winservice.Config{Name: name, Display: "Holdfast test", Description: "A test.", Exe: exe, Args: []string{"run", verb, "two words"}})
	case "start":
		return winservice.Start(ctx, name)
	case "stop":
		return winservice.Stop(ctx, name)
	case "remove":
		return winservice.Remove(ctx, name)
	case "status":
		st, err := winservice.Query(ctx, name)
		fmt.Printf("status %s pid=%v exit=%d\n", st.State, st.PID != 0, st.ExitCode)
		return err
	case "wait-failed":
		for {
			st, err := winservice.Query(ctx, name)
			if err != nil || st.State == winservice.Stopped {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(50 * time.Millisecond):
			}
		}
	case "try-start": // it may have failed before it was seen running
		_ = winservice.Start(ctx, name)
		return nil
	case "policy-proxy":
		k, _, err := registry.CreateKey(registry.LOCAL_MACHINE, `SOFTWARE\Microsoft\Windows\CurrentVersion\Internet Settings`, registry.SET_VALUE)
		if err != nil {
			return err
		}
		defer k.Close()
		return errors.Join(k.SetDWordValue("ProxyEnable", 1), k.SetStringValue("ProxyServer", "http=a:80;https=b:8080"))
	case "proxy":
		p, err := winservice.MachineProxy()
		fmt.Printf("proxy %q\n", p.HTTPS)
		return err
	}
	return fmt.Errorf("no such verb")
}

// service leaves a file that tells how its work began and ended.
func service() int {
	note := func(s string) {
		f, err := os.OpenFile(`C:\service.txt`, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			fmt.Fprintln(f, s)
			f.Close()
		}
	}
	h, closeLog, err := winservice.EventLog(name, slog.LevelInfo)
	if err != nil {
		note("event log: " + err.Error())
		return 1
	}
	defer closeLog()
	log := slog.New(h)
	err = winservice.Run(winservice.RunConfig{Name: name, StopTimeout: 10 * time.Second, Log: log}, func(ctx context.Context) error {
		note(fmt.Sprintf("began %q", os.Args[2:]))
		log.Info("The test service began.", "arguments", os.Args[1:])
		if os.Args[2] == "install-failing" {
			return errors.New("wanted")
		}
		<-ctx.Done()
		time.Sleep(1500 * time.Millisecond) // long enough for a progress report
		note("ended")
		return context.Cause(ctx)
	})
	note(fmt.Sprintf("returned %v", err))
	if err != nil {
		return 1
	}
	return 0
}
