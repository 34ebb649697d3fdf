package main

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"holdfast/internal/dr"
)

func TestAgentRunFlags(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		o    runOptions
		want string // rules, or part of the error after "!"
	}{
		"None":     {runOptions{}, ""},
		"Limit":    {runOptions{bandwidth: 20 << 20}, "=20971520"},
		"Hours":    {runOptions{bandwidth: 20 << 20, hours: []string{"Mon-Fri 08:00-18:00=5M", "Sat 00:00-24:00=0"}}, "Mon-Fri 08:00-18:00=5242880|Sat 00:00-24:00=0|=20971520"},
		"NoHours":  {runOptions{hours: []string{"5M"}}, "!bandwidth-hours"},
		"BadHours": {runOptions{hours: []string{"8-18=5M"}}, "!8-18"},
		"BadRate":  {runOptions{hours: []string{"08:00-18:00=quick"}}, "!quick"},
		"TooSlow":  {runOptions{bandwidth: 20}, "!below"},
		"Turns":    {runOptions{turns: [3]int{0, -1, 0}}, "!--transfers -1"},
	} {
		rules, err := c.o.rules()
		var got []string
		for _, r := range rules {
			got = append(got, r.Window.String()+"="+strconv.FormatInt(r.BytesPerSecond, 10))
		}
		if text, bad := strings.CutPrefix(c.want, "!"); bad {
			if err == nil || !strings.Contains(err.Error(), text) || dr.KindOf(err) != dr.KindInvalid {
				t.Errorf("%s: error %v", name, err)
			}
		} else if err != nil || strings.Join(got, "|") != c.want {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
}

// TestServiceArgs: the service runs the agent with the flags that were given, wherever it is started.
func TestServiceArgs(t *testing.T) {
	t.Parallel()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	var o runOptions
	c := &cobra.Command{Use: "x"}
	c.Flags().String("output", "", "") // as of the program
	var names []string
	own := &cobra.Command{Use: "y"}
	o.add(own)
	own.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	c.Flags().AddFlagSet(own.Flags())
	if err := c.ParseFlags([]string{"--state", "st", "--bandwidth-hours", "Sat 00:00-24:00=0", "--bandwidth-hours=Mon-Fri 08:00-18:00=5M", "--hyperv-password-file", "/p", "--vmm-powershell", "pwsh", "--output", "json",
		"--bandwidth", "20M", "--run-dir", ""}); err != nil {
		t.Fatal(err)
	}
	got, err := serviceArgs(c.Flags(), names)
	want := []string{"agent", "run", "--service", "--bandwidth=20971520", "--bandwidth-hours=Sat 00:00-24:00=0", "--bandwidth-hours=Mon-Fri 08:00-18:00=5M", "--hyperv-password-file=/p", "--run-dir=",
		"--state=" + filepath.Join(dir, "st"), "--vmm-powershell=pwsh"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v\nwant %q", got, err, want)
	}
	// The program takes them.
	again := &cobra.Command{Use: "z"}
	var o2 runOptions
	o2.add(again)
	if err := again.ParseFlags(want[3:]); err != nil {
		t.Fatal(err)
	}
	if o2.bandwidth != o.bandwidth || len(o2.hours) != 2 || !slices.Equal(o2.hours, o.hours) {
		t.Errorf("%+v", o2)
	}
}
