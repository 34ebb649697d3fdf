// Command hvsim simulates Hyper-V hosts for programs that manage them, as vcsim
// does for vSphere: WS-Man servers in front of VMs on real VHDX chains in a
// directory, with change tracking, checkpoints, jobs, power and a plan of faults.
//
// Its hosts answer as Microsoft's published reference says; it was never
// compared with a real host. See docs/hvsim.md.
//
// It promises: a directory belongs to one process at a time; whatever ends the
// process, the same command goes on with what is in the directory; a mistake in
// the command line is found before anything is changed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/hvsim"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	cmd := command(os.Stdout, os.Stderr)
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "hvsim:", strings.ReplaceAll(err.Error(), "hvsim: ", "")) // packages below name themselves, too
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	dir, listen, user, password, faults, accel string
	hosts, vms                                 int
	vm                                         []string
	jobTime, mergeTime, writeEvery             time.Duration
	inline, basic, tls, run, asJSON            bool
	seed                                       uint64
	verbose                                    bool

	images []imageVM // of vm
}

// width is that of the narrowest terminal that the help is made for.
const width = 80

func command(out, errOut io.Writer) *cobra.Command {
	var o options
	c := &cobra.Command{
		Use: "hvsim --dir DIR", Short: "Simulate Hyper-V hosts", Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true, DisableFlagsInUseLine: true,
		Long: `Simulate Hyper-V hosts: WS-Man servers in front of VMs whose disks are real
VHDX chains below a directory. What a host calls C:\x is DIR/HOST/C/x. State
stays in the directory; the same command goes on with it. It prints how to
connect. Ctrl-C ends it; SIGHUP makes it read the plan of faults again.

  hvsim --dir /tmp/hv --hosts 3 --vms 200

A VM that really runs (by QEMU) is made of copies of disk images, raw or VHDX.
The words of --vm are name=, disk= (once per disk), host=HV1, gen=1 or 2, cpus=,
memory= (MiB) and os= (what the guest tells); name and disk must be there:

  hvsim --dir /tmp/hv --run --vm name=web,os=Linux,memory=512,disk=/img/web.raw

A plan of faults is a JSON array such as

  [{"Method":"CreateSnapshot","Count":2,"JobState":10,"JobText":"VSS failed"}]

docs/hvsim.md says more.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return simulate(c.Context(), o, out, errOut)
		},
	}
	c.SetOut(out)
	c.SetErr(errOut)
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w (see hvsim --help)", err) })
	f := c.Flags()
	f.StringVar(&o.dir, "dir", "", "`directory` of hosts, disks and state; made if it is missing")
	f.StringVar(&o.listen, "listen", "127.0.0.1:5985", "`address` of the first host; each further one has the next port; port 0: any free ones")
	f.IntVar(&o.hosts, "hosts", 1, "`number` of hosts: HV1, HV2, …")
	f.IntVar(&o.vms, "vms", 0, "`number` of VMs without guests, over all hosts")
	f.StringArrayVar(&o.vm, "vm", nil, "VM made of disk images, described by `words` (see above); may be repeated")
	f.BoolVar(&o.run, "run", false, "run VMs by QEMU, but not those of --vms")
	f.StringVar(&o.accel, "accel", "tcg", "`way` that QEMU runs them: kvm, or tcg (slow, everywhere)")
	f.StringVar(&o.user, "user", "Administrator", "`name` of the user that may sign in")
	f.StringVar(&o.password, "password-file", "", "`file` with the password (default: DIR/password, made if it is missing)")
	f.BoolVar(&o.tls, "tls", false, "serve HTTPS with a certificate made for it, DIR/certificate.pem; its SHA-256 is shown")
	f.BoolVar(&o.basic, "basic", false, "offer Basic beside NTLM, and take messages that are not encrypted over plain HTTP")
	f.StringVar(&o.faults, "faults", "", "JSON `file` with a plan of faults; SIGHUP reads it again")
	f.DurationVar(&o.jobTime, "job-time", 300*time.Millisecond, "how long jobs take")
	f.DurationVar(&o.mergeTime, "merge-time", time.Second, "how long the merge of a checkpoint takes at least")
	f.DurationVar(&o.writeEvery, "write-every", 0, "let VMs without guests write something that often (default: never)")
	f.BoolVar(&o.inline, "inline", false, "answer at once where a method may, instead of starting a job")
	f.Uint64Var(&o.seed, "seed", 1, "`number` that made-up ids and data come from")
	f.BoolVar(&o.asJSON, "json", false, "print what is served as one line of JSON")
	f.BoolVar(&o.verbose, "verbose", false, "log every request")
	_ = c.MarkFlagRequired("dir") // the flag exists
	c.SetUsageTemplate(strings.ReplaceAll(c.UsageTemplate(), "Flags.FlagUsages |", fmt.Sprintf("Flags.FlagUsagesWrapped %d |", width)))
	return c
}

// check judges the flags before anything is done.
func (o *options) check() (err error) {
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	switch {
	case o.hosts < 1 || o.hosts > 64:
		return fmt.Errorf("--hosts %d: it must be 1 to 64", o.hosts)
	case o.vms < 0 || o.vms > 10000:
		return fmt.Errorf("--vms %d: it must be 0 to 10000", o.vms)
	case o.accel != "kvm" && o.accel != "tcg":
		return fmt.Errorf("--accel %s: it must be kvm or tcg", o.accel)
	case strings.TrimSpace(o.user) == "" || strings.ContainsAny(o.user, `\@:`):
		return fmt.Errorf("--user %q: it must be a name without domain", o.user)
	case o.jobTime < 0 || o.mergeTime < 0 || o.writeEvery < 0:
		return errors.New("--job-time, --merge-time and --write-every can't be negative")
	}
	if o.run {
		if runtime.GOOS != "linux" {
			return errors.New("--run: guests run on Linux only")
		}
		if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
			return errors.New("--run: the program qemu-system-x86_64 is not there (Debian: apt-get install qemu-system-x86)")
		}
	}
	names := map[string]bool{}
	for _, text := range o.vm {
		v, err := parseVM(text, o.hosts)
		if err == nil && names[strings.ToUpper(v.spec.Name)] {
			err = fmt.Errorf("a second VM has the name %s", v.spec.Name)
		}
		if err != nil {
			return fmt.Errorf("--vm %s: %w", text, err)
		}
		names[strings.ToUpper(v.spec.Name)] = true
		o.images = append(o.images, v)
	}
	return nil
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
	ctx, cancel := context.WithCancel(ctx) // ends the writers however this ends
	defer cancel()
	level := slog.LevelWarn
	if o.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(errOut, &slog.HandlerOptions{Level: level}))
	hup := make(chan os.Signal, 1)
	onHangup(hup)
	defer signal.Stop(hup)
	faults, err := readPlan(o)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return err
	}
	unlock, err := lockFile(filepath.Join(o.dir, "lock"))
	if err != nil {
		return fmt.Errorf("the directory %s: %w", o.dir, err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	e, err := openEntry(o)
	if err != nil {
		return err
	}
	servers, err := listen(o)
	defer func() { err = errors.Join(err, servers.close()) }() // after the site's end it answers nobody
	if err != nil {
		return err
	}
	site, err := openSite(ctx, o, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, servers.close(), site.Close()) }()
	if err := fill(ctx, o, site, errOut); err != nil {
		return err
	}
	site.SetFaults(faults...)
	list := servers.serve(o, site, e, log)
	if err := announce(out, o, e, list); err != nil {
		return err
	}
	writers := write(ctx, o, site, log)
	defer writers.Wait()
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			tell(errOut, site)
			return nil
		case err := <-servers.failed:
			return err
		case <-hup:
			faults, err := readPlan(o)
			if err != nil {
				log.Error("the plan of faults stays as it was", "err", err)
				continue
			}
			tell(errOut, site)
			site.SetFaults(faults...)
			fmt.Fprintf(errOut, "hvsim: %d faults are in force now\n", len(faults))
		}
	}
}

// announce says what is served.
func announce(out io.Writer, o options, e entry, list []served) error {
	if !o.asJSON {
		_, err := io.WriteString(out, welcome(o, e, list))
		return err
	}
	v := struct {
		User     string   `json:"user"`
		Password string   `json:"password,omitempty"` // if it was made
		Hosts    []served `json:"hosts"`
	}{User: o.user, Hosts: list}
	if o.password == "" {
		v.Password = e.password
	}
	return json.NewEncoder(out).Encode(v)
}

// tell says which faults of the plan were used.
func tell(errOut io.Writer, site *hvsim.Site) {
	for _, line := range counts(site.Fired()) {
		fmt.Fprintln(errOut, "hvsim: fault", line)
	}
}
