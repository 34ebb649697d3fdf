package report

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// width of the table, columns.
const width = 118

// Table prints the figures for people, at most 118 columns wide: per figure one
// line with value and goal, and below it what it is compared with.
func (r *Report) Table(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "Holdfast %s, %s, %s\n%d cores, load %.1f to %.1f, disk of %s, %.0f s. * = wall-clock time: never decides.\n",
		r.Version, r.Date.Format(time.RFC3339), r.Host.CPU, r.Host.Cores, r.Host.LoadBefore[0], r.Host.LoadAfter[0], Size(r.Disk), r.Took)
	area := ""
	for _, f := range r.Figures {
		if f.Area != area {
			area = f.Area
			fmt.Fprintf(b, "\n%s [%s]\n", area, f.Row)
		}
		f.print(b)
	}
	goals, missed := 0, r.Missed(true)
	for _, f := range r.Figures {
		if f.Goal != nil {
			goals++
		}
	}
	fmt.Fprintf(b, "\n%d of %d goals met", goals-len(missed), goals)
	if len(missed) > 0 {
		var names []string
		for _, f := range missed {
			names = append(names, f.Area+": "+f.Name)
		}
		fmt.Fprint(b, "; missed:\n")
		for _, n := range names {
			fmt.Fprintf(b, "  %s\n", n)
		}
	} else {
		fmt.Fprintln(b)
	}
	return b.Flush()
}

func (f Figure) print(w io.Writer) {
	name := f.Name
	if f.Wall {
		name += " *"
	}
	value := Number(f.Value) + " " + f.Unit
	if f.NotAvailable != "" {
		value = "not available"
	}
	line := "  " + pad(name, 58) + " " + pad(value, 20)
	if f.Goal != nil {
		met := "MISSED"
		if *f.Met {
			met = "met"
		}
		line += " " + pad("goal "+f.Goal.String(), 18) + " " + met
	}
	fmt.Fprintln(w, strings.TrimRight(line, " "))
	if f.NotAvailable != "" {
		wrap(w, strings.Fields(f.NotAvailable), " ")
	}
	var parts []string
	for _, p := range f.Peers {
		if p.NotAvailable != "" {
			parts = append(parts, p.Name+": not available: "+p.NotAvailable)
			continue
		}
		parts = append(parts, p.Name+" "+Number(p.Value))
	}
	wrap(w, parts, " · ")
}

func pad(s string, n int) string {
	return s + strings.Repeat(" ", max(0, n-utf8.RuneCountInString(s)))
}

// wrap prints the parts on indented lines; one that is longer than a line is broken at its spaces.
func wrap(w io.Writer, parts []string, sep string) {
	const indent = "      "
	line := ""
	flush := func() {
		if line != "" {
			fmt.Fprintln(w, indent+line)
		}
		line = ""
	}
	for _, p := range parts {
		if line != "" && len(indent)+utf8.RuneCountInString(line+sep+p) > width {
			flush()
		}
		if line != "" {
			line += sep
		}
		for len(indent)+utf8.RuneCountInString(line+p) > width {
			i := strings.LastIndexByte(p[:min(len(p), width-len(indent)-utf8.RuneCountInString(line))], ' ')
			if i <= 0 {
				break
			}
			line += p[:i]
			p = p[i+1:]
			flush()
		}
		line += p
	}
	flush()
}
