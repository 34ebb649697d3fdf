package hvsim_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/model"
)

// victimEnv makes the test program run a site in a directory until it is killed.
const victimEnv = "HOLDFAST_TEST_VICTIM_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimEnv); dir != "" {
		if err := beVictim(dir); err != nil {
			fmt.Println("failed:", err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const victimSize = 4 << 20

// step is one thing that happens to the VM.
type step struct {
	kind byte // write, trim, flush, checkpoint, conVert, user checkpoint, delete it, apply it
	off  int64
	n    int64
	fill byte
}

// steps is what happens in a victim's life. Before each new file stands a write, so that every file has content.
func steps(seed uint64) []step {
	rng := rand.New(rand.NewPCG(seed, 31))
	var out []step
	rec, user := false, false
	for i := range 3000 {
		s := step{kind: 'w', off: rng.Int64N(victimSize/512-64) * 512, n: 512 * (1 + rng.Int64N(60)), fill: byte(1 + i%250)}
		if i%2 == 1 {
			switch k := rng.IntN(8); {
			case k == 0:
				s.kind, s.fill = 't', 0
			case k == 1:
				s.kind = 'f'
			case k < 4 && !rec:
				s.kind, rec = 'c', true
			case k < 5 && rec:
				s.kind, rec = 'v', false
			case k == 5 && !user && !rec:
				s.kind, user = 'u', true
			case k == 6 && user:
				s.kind, user = 'd', false
			case k == 7 && user && !rec:
				s.kind = 'a'
			}
		}
		out = append(out, s)
	}
	return out
}

// beVictim does the steps and says after each that it is done.
func beVictim(dir string) error {
	ctx := context.Background()
	var seed uint64
	if _, err := fmt.Sscan(os.Getenv(victimEnv+"_SEED"), &seed); err != nil {
		return err
	}
	s, err := hvsim.New(hvsim.Config{Dir: dir, Seed: seed, Hosts: []hvsim.HostConfig{{Name: "HV1"}}})
	if err != nil {
		return err
	}
	if err := s.Open(ctx); err != nil {
		return err
	}
	vm, err := s.Host("HV1").AddVM(ctx, hvsim.VMSpec{Name: "victim", Disks: []hvsim.DiskSpec{{Size: victimSize, BlockSize: 1 << 20}}})
	if err != nil {
		return err
	}
	d := vm.Disk(vm.State().Disks[0].ID)
	var rec, user string
	for i, st := range steps(seed) {
		var cp model.Checkpoint
		switch st.kind {
		case 'w':
			err = d.Write(st.off, bytes.Repeat([]byte{st.fill}, int(st.n)))
		case 't':
			err = d.Trim(st.off, st.n)
		case 'f':
			err = d.Flush()
		case 'c':
			cp, err = vm.Checkpoint(ctx, model.NewCheckpoint{Recovery: true, Consistency: 2})
			rec = cp.ID
		case 'v':
			_, err = vm.Convert(rec, "")
		case 'u':
			cp, err = vm.Checkpoint(ctx, model.NewCheckpoint{Consistency: 2})
			user = cp.ID
		case 'd':
			err = vm.DeleteCheckpoint(user)
		case 'a':
			err = first(vm.PowerOff(), vm.ApplyCheckpoint(user), vm.Start(ctx))
		}
		if err != nil {
			return fmt.Errorf("step %d %c: %w", i, st.kind, err)
		}
		if _, err := fmt.Println(i); err != nil {
			return err
		}
	}
	time.Sleep(time.Minute) // the test kills it before
	return nil
}

// sectors knows what a kill may leave in each sector: what was there at the last flush, or anything written since.
type sectors [victimSize / 512][]byte

func (m *sectors) write(s step) {
	for i := s.off / 512; i < (s.off+s.n)/512; i++ {
		m[i] = append(m[i], s.fill)
	}
}

func (m *sectors) flush() {
	for i := range m {
		m[i] = m[i][len(m[i])-1:]
	}
}

func (m *sectors) clone() *sectors {
	c := new(sectors)
	for i := range m {
		c[i] = bytes.Clone(m[i])
	}
	return c
}

func (m *sectors) check(p []byte) error {
	for i := range m {
		b := p[i*512 : i*512+512]
		if bytes.IndexByte(m[i], b[0]) < 0 || !bytes.Equal(b[1:], b[:511]) {
			return fmt.Errorf("sector %d holds %d (%d at its end), not one of %d", i, b[0], b[511], m[i])
		}
	}
	return nil
}

// after returns what the disk may be when done steps are known to be done and one more was on its way.
func after(list []step, done int) []*sectors {
	m := new(sectors)
	for i := range m {
		m[i] = []byte{0}
	}
	var saved *sectors
	for i, s := range list[:done+1] {
		last := i == done
		switch s.kind {
		case 'w', 't':
			m.write(s)
		case 'f', 'c':
			if !last {
				m.flush()
			}
		case 'u':
			if !last {
				m.flush()
				saved = m.clone()
			}
		case 'a':
			if last {
				return []*sectors{m, saved}
			}
			m = saved.clone()
		}
	}
	return []*sectors{m}
}

// TestKilledProgram kills the simulator at random moments of freezes, merges and
// reverts under a workload: another one takes the site over, what was flushed is there,
// and libvhdi reads the chains as we do.
func TestKilledProgram(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	must(t, err)
	rounds := uint64(10)
	if testing.Short() {
		rounds = 3
	}
	kinds := map[byte]int{}
	merging := 0
	for seed := range rounds {
		dir := t.TempDir()
		cmd := exec.Command(exe, "-test.run=^$")
		cmd.Env = append(os.Environ(), victimEnv+"="+dir, fmt.Sprintf("%s_SEED=%d", victimEnv, seed))
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		list := steps(seed)
		lines, stop := bufio.NewScanner(out), 20+rand.New(rand.NewPCG(seed, 32)).IntN(200)
		for list[stop].kind != "avcdu"[seed%5] { // the step to be killed in
			stop++
		}
		done := 0
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "failed") {
				t.Errorf("seed %d: %s", seed, lines.Text())
			}
			if done++; done == stop {
				time.Sleep(time.Duration(seed*7%11) * 200 * time.Microsecond) // somewhere in it, or a little later
				must(t, cmd.Process.Kill())
			}
		}
		_ = cmd.Wait() // it was killed
		kinds[list[done].kind]++
		s := open(t, hvsim.Config{Dir: dir, Hosts: []hvsim.HostConfig{{Name: "HV1"}}})
		vm := s.Host("HV1").VM("victim")
		if vm == nil {
			t.Fatalf("seed %d: the VM is gone after %d steps", seed, done)
		}
		st := vm.State()
		if files := len(st.Disks[0].Files); files > 1 {
			merging++
		}
		got, err := vm.Disk(st.Disks[0].ID).Content()
		must(t, err)
		var fits []error
		for _, m := range after(list, done) {
			if err := m.check(got); err != nil {
				fits = append(fits, err)
			} else {
				fits = nil
				break
			}
		}
		if fits != nil {
			t.Fatalf("seed %d, killed after %d steps, in %c: %v", seed, done, list[done].kind, fits)
		}
		// It goes on: writes, a checkpoint, and the end of all merges.
		must(t, vm.Start(t.Context()))
		d := vm.Disk(st.Disks[0].ID)
		for off := int64(0); off < victimSize; off += 1 << 20 {
			must(t, d.Write(off+512, bytes.Repeat([]byte{251}, 512)))
			copy(got[off+512:], bytes.Repeat([]byte{251}, 512))
		}
		cp, err := vm.Checkpoint(t.Context(), model.NewCheckpoint{Recovery: true, Consistency: 2})
		must(t, err)
		oracle(t, s.Host("HV1"), vm, cp.Disks[0].Path, got)
		must(t, vm.DeleteCheckpoint(cp.ID))
		again, err := d.Content()
		must(t, err)
		if !bytes.Equal(again, got) {
			t.Fatalf("seed %d: the disk changed without being written", seed)
		}
		must(t, s.Close())
	}
	t.Logf("killed in steps %v, %d times with more than one file", kinds, merging)
	if merging == 0 {
		t.Error("no kill met a chain")
	}
}

// oracle lets libvhdi read a frozen file with its parents.
func oracle(t *testing.T, h *hvsim.Host, vm *hvsim.VM, path string, want []byte) {
	t.Helper()
	const script = `
import sys, pyvhdi
files = []
for p in sys.argv[1:]:
    f = pyvhdi.file(); f.open(p)
    if files: f.set_parent(files[-1])
    files.append(f)
top = files[-1]
sys.stdout.buffer.write(top.read(top.get_media_size()))
`
	args := []string{}
	ds := vm.State().Disks[0]
	for path != "" {
		local, err := h.Local(path)
		must(t, err)
		args = append([]string{local}, args...)
		parent := ""
		for _, f := range ds.Files {
			if strings.EqualFold(f.Path, path) {
				parent = f.Parent
			}
		}
		path = parent
	}
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", append([]string{"-c", script}, args...)...)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	got, err := cmd.Output()
	if err != nil {
		t.Fatalf("libvhdi (package python3-libvhdi) on %d files: %v: %s", len(args), err, complaint.String())
	}
	if !bytes.Equal(got, want) {
		for i := range want {
			if i >= len(got) || got[i] != want[i] {
				t.Fatalf("libvhdi reads a chain of %d files otherwise from byte %d on", len(args), i)
			}
		}
	}
}
