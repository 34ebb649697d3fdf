package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"holdfast/internal/armwire"
)

// screen shows the story: a heading for each step, a line for each task, and
// on a terminal a live line with progress and ETA.
type screen struct {
	mu    sync.Mutex
	w     io.Writer
	live  bool // a terminal: lines can be redrawn
	shown bool // a live line is on the screen
	start time.Time
	step  int
	tasks map[string]string // task → state last printed
}

func newScreen(f *os.File) *screen {
	return &screen{w: f, live: term.IsTerminal(int(f.Fd())), start: time.Now(), tasks: map[string]string{}}
}

func (s *screen) erase() {
	if s.shown {
		fmt.Fprint(s.w, "\r\x1b[K")
		s.shown = false
	}
}

// heading begins a step of the story.
func (s *screen) heading(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	s.step++
	clear(s.tasks)
	title := fmt.Sprintf(format, args...)
	if s.live {
		title = "\x1b[1m" + title + "\x1b[0m"
	}
	fmt.Fprintf(s.w, "\n%2d  %s  (%.0f s)\n", s.step, title, time.Since(s.start).Seconds())
}

// line prints a line below the heading.
func (s *screen) line(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	fmt.Fprintf(s.w, "    %s\n", fmt.Sprintf(format, args...))
}

// progress shows a live line; without a terminal it shows nothing.
func (s *screen) progress(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.live {
		return
	}
	s.erase()
	text := fmt.Sprintf(format, args...)
	if n := 74; len(text) > n {
		text = text[:n]
	}
	fmt.Fprintf(s.w, "    %s", text)
	s.shown = true
}

// job shows a job's tasks: each once when it ends, the running one live.
func (s *screen) job(j armwire.Job) {
	for _, t := range j.Tasks {
		state := t.State
		s.mu.Lock()
		seen := s.tasks[j.ScenarioName+"/"+t.Name] == state
		s.tasks[j.ScenarioName+"/"+t.Name] = state
		s.mu.Unlock()
		switch state {
		case "Succeeded", "Failed", "Cancelled", "Skipped":
			if seen {
				continue
			}
			took := ""
			if t.StartTime != nil && t.EndTime != nil {
				took = fmt.Sprintf("%.1f s", t.EndTime.Sub(*t.StartTime).Seconds())
			}
			mark := map[string]string{"Succeeded": "ok", "Failed": "FAILED"}[state]
			if mark == "" {
				mark = strings.ToLower(state)
			}
			s.line("%-46s %-8s %s", t.FriendlyName, mark, took)
		case "InProgress":
			eta := ""
			if t.ETASeconds > 0 {
				eta = fmt.Sprintf(", %d s left", t.ETASeconds)
			}
			note := t.Note
			if note != "" {
				note = "  " + note
			}
			s.progress("%-46s %s %3.0f %%%s%s", t.FriendlyName, bar(t.ProgressPercent), t.ProgressPercent, eta, note)
		}
	}
}

func bar(percent float64) string {
	n := min(max(int(percent/10), 0), 10)
	return "[" + strings.Repeat("#", n) + strings.Repeat(".", 10-n) + "]"
}

func (s *screen) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	fmt.Fprintf(s.w, "\nThe demo did not succeed: %v\n", err)
}

func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}
