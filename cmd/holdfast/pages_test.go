package main

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"holdfast/cmd/holdfast/internal/console"
)

// commandsOf are the commands that a page of docs shows, one per line that is set in by four.
func commandsOf(t *testing.T, page string) (out [][]string) {
	t.Helper()
	raw, err := os.ReadFile("../../docs/" + page)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^ {4}holdfast (.+)$`).FindAllStringSubmatch(string(raw), -1) {
		line, _, _ := strings.Cut(m[1], " #")
		out = append(out, strings.Fields(strings.ReplaceAll(line, `"`, "")))
	}
	return out
}

// TestPages: the commands on the pages that can't be run as they stand exist, with their flags and arguments.
func TestPages(t *testing.T) {
	t.Parallel()
	for page, least := range map[string]int{"windows.md": 20, "planner.md": 4} {
		commands := commandsOf(t, page)
		if len(commands) < least {
			t.Errorf("docs/%s has %d commands, fewer than %d", page, len(commands), least)
		}
		for _, args := range commands {
			root := newRoot(&console.Console{Now: time.Now})
			c, rest, err := root.Find(args)
			if err == nil {
				err = c.ParseFlags(rest)
			}
			if err == nil && c.HasSubCommands() {
				err = errors.New("it is no command")
			}
			if err == nil && c.Args != nil {
				err = c.Args(c, c.Flags().Args())
			}
			if err != nil {
				t.Errorf("docs/%s: holdfast %s: %v", page, strings.Join(args, " "), err)
			}
		}
	}
}
