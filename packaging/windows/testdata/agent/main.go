//go:build windows

// Command agent stands for the agent in the installer's test: a service that notes how it was started.
package main

import (
	"context"
	"fmt"
	"os"

	"holdfast/internal/winservice"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "status" {
		st, err := winservice.Query(context.Background(), "HoldfastAgent")
		fmt.Printf("%s %v\n", st.State, err)
		return
	}
	err := winservice.Run(winservice.RunConfig{Name: "HoldfastAgent"}, func(ctx context.Context) error {
		if err := os.WriteFile(`C:\agent.txt`, fmt.Append(nil, os.Args[1:]), 0o600); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
