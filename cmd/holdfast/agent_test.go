package main

import (
	"strconv"
	"strings"
	"testing"

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
