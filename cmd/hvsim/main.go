// Command hvsim simulates Hyper-V hosts for programs that manage them, as vcsim
// does for vSphere: WS-Man servers in front of VMs on real VHDX chains in a
// directory, with change tracking, checkpoints, jobs, power and a plan of faults.
//
// Its hosts answer as Microsoft's published reference says; it was never
// compared with a real host. See docs/hyperv-status.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	cmd := command(os.Stdout, os.Stderr)
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "hvsim:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	dir, listen, user, password, faults, accel string
	hosts, vms                                 int
	import_                                    []string
	jobTime, mergeTime, writeEvery             time.Duration
	inline, basic, tls, run, asJSON            bool
	seed                                       uint64
	verbose                                    bool
}

func command(out, errOut io.Writer) *cobra.Command {
	var o options
	c := &cobra.Command{
		Use: "hvsim --dir DIR", Short: "Simulate Hyper-V hosts", Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		Long: `Simulate Hyper-V hosts: WS-Man servers in front of VMs whose disks are real VHDX
chains below a directory. What a host calls C:\x is DIR/HOST/C/x. State stays in
the directory; the same command goes on with it.

  hvsim --dir /tmp/hv --hosts 3 --vms 200
  curl -u Administrator:PASSWORD --ntlm ... http://127.0.0.1:5985/wsman

A VM that really runs is made of disk images, raw or VHDX:

  hvsim --dir /tmp/hv --run --vm name=web,os=Linux,memory=512,disk=/img/root.raw

A plan of faults is a JSON array such as
  [{"Method":"CreateSnapshot","Count":2,"JobState":10,"JobText":"VSS failed"}]`,
		RunE: func(c *cobra.Command, _ []string) error { return simulate(c.Context(), o, out, errOut) },
	}
	c.SetOut(out)
	c.SetErr(errOut)
	f := c.Flags()
	f.StringVar(&o.dir, "dir", "", "directory of hosts and disks")
	f.StringVar(&o.listen, "listen", "127.0.0.1:5985", "address of the first host; each further one has the next port, port 0 any free one")
	f.IntVar(&o.hosts, "hosts", 1, "number of hosts, HV1, HV2, …")
	f.IntVar(&o.vms, "vms", 0, "number of VMs without guests, over all hosts")
	f.StringArrayVar(&o.import_, "vm", nil, "VM made of existing images: name=…,host=HV1,gen=1|2,cpus=…,memory=MB,os=…,disk=FILE,disk=FILE; may be repeated")
	f.BoolVar(&o.run, "run", false, "really run the VMs of --vm, by QEMU")
	f.StringVar(&o.accel, "accel", "tcg", "acceleration of QEMU: kvm or tcg")
	f.StringVar(&o.user, "user", "Administrator", "user that may sign in")
	f.StringVar(&o.password, "password-file", "", "file with the password (default: a new one, shown once)")
	f.BoolVar(&o.tls, "tls", false, "serve HTTPS with a certificate made for it; its SHA-256 is shown")
	f.BoolVar(&o.basic, "basic", false, "offer Basic beside NTLM, over plain HTTP also")
	f.StringVar(&o.faults, "faults", "", "JSON file with a plan of faults; SIGHUP reads it again")
	f.DurationVar(&o.jobTime, "job-time", 300*time.Millisecond, "how long jobs take")
	f.DurationVar(&o.mergeTime, "merge-time", time.Second, "how long the merge of a checkpoint takes at least")
	f.DurationVar(&o.writeEvery, "write-every", 0, "let VMs without guests write something that often (default: never)")
	f.BoolVar(&o.inline, "inline", false, "answer at once where a method may, instead of starting a job")
	f.Uint64Var(&o.seed, "seed", 1, "of made-up ids and data")
	f.BoolVar(&o.asJSON, "json", false, "print what is served as one line of JSON")
	f.BoolVar(&o.verbose, "verbose", false, "log every request")
	_ = c.MarkFlagRequired("dir") // the flag exists
	return c
}

// served is a host that can be reached.
type served struct {
	Host  string `json:"host"`
	URL   string `json:"url"`
	Files string `json:"files"` // directory of its drives
	Pin   string `json:"certificateSha256,omitempty"`
	VMs   int    `json:"vms"`
}

func simulate(ctx context.Context, o options, out, errOut io.Writer) (err error) {
	level := slog.LevelWarn
	if o.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(errOut, &slog.HandlerOptions{Level: level}))
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	password, made, err := secret(o)
	if err != nil {
		return err
	}
	site, err := openSite(ctx, o, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, site.Close()) }()
	if err := fill(ctx, o, site); err != nil {
		return err
	}
	if err := plan(o, site); err != nil {
		return err
	}
	servers, list, err := serve(o, site, password, log)
	defer func() { err = errors.Join(err, servers.close()) }()
	if err != nil {
		return err
	}
	if o.asJSON {
		v := struct {
			User     string   `json:"user"`
			Password string   `json:"password,omitempty"` // if it was made
			Hosts    []served `json:"hosts"`
		}{User: o.user, Hosts: list}
		if made {
			v.Password = password
		}
		if err := json.NewEncoder(out).Encode(v); err != nil {
			return err
		}
	} else {
		show(out, o, list, password, made)
	}
	writers := write(ctx, o, site, log)
	defer writers.Wait()
	hup := make(chan os.Signal, 1)
	onHangup(hup)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-servers.failed:
			return err
		case <-hup:
			if err := plan(o, site); err != nil {
				log.Error("the plan of faults stays as it was", "err", err)
			}
		}
	}
}

func show(out io.Writer, o options, list []served, password string, made bool) {
	for _, s := range list {
		fmt.Fprintf(out, "%-6s %s  %d VMs, drives in %s\n", s.Host, s.URL, s.VMs, s.Files)
		if s.Pin != "" {
			fmt.Fprintf(out, "       certificate %s\n", s.Pin)
		}
	}
	fmt.Fprintf(out, "user   %s\n", o.user)
	if made {
		fmt.Fprintf(out, "password %s\n", password)
	}
	fmt.Fprintln(out, "Ctrl-C ends it.")
}
