package main

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/model"
)

func TestParseVM(t *testing.T) {
	t.Parallel()
	v, err := parseVM("name=web 01,host=hv2,gen=2,cpus=4,memory=2048,os=Debian GNU/Linux,disk=/a=b.raw,disk=c.vhdx", 2)
	if err != nil {
		t.Fatal(err)
	}
	if s := v.spec; s.Name != "web 01" || v.host != "hv2" || s.Generation != 2 || s.CPUs != 4 || s.MemoryMB != 2048 || s.OS != "Debian GNU/Linux" || strings.Join(v.images, "|") != "/a=b.raw|c.vhdx" {
		t.Errorf("%+v", v)
	}
	v, err = parseVM("disk=x,name=y", 1)
	if err != nil || v.host != "HV1" || v.spec.Generation != 1 || v.spec.CPUs != 1 || v.spec.MemoryMB != 512 {
		t.Errorf("%+v, %v", v, err)
	}
}

// fakeGuests runs guests that end when they are told to.
type fakeGuests struct{ made *dummy }

func (f *fakeGuests) Start(context.Context, model.VMRun) (model.Running, error) {
	f.made = newDummy()
	return f.made, nil
}

// TestGuestsEnd: the end of a guest is told, but not when the program ends with it.
func TestGuestsEnd(t *testing.T) {
	t.Parallel()
	for _, together := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			site, err := hvsim.New(hvsim.Config{Dir: t.TempDir(), Hosts: []hvsim.HostConfig{{Name: "HV1"}}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			guests := &fakeGuests{}
			r := &runner{guests: guests, site: site, ending: ctx.Done()}
			g, err := r.Start(t.Context(), model.VMRun{ID: "1"})
			if err != nil {
				t.Fatal(err)
			}
			guests.made.end()
			time.Sleep(endTogether / 2)
			if together {
				cancel()
			}
			time.Sleep(endTogether)
			synctest.Wait()
			select {
			case <-g.Done():
				if together {
					t.Error("a guest that ended with the program was taken for one that shut down")
				}
			default:
				if !together {
					t.Error("the end of a guest is not told")
				}
			}
			if err := site.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func FuzzParseVM(f *testing.F) {
	for _, s := range []string{"name=web,disk=a", "name=a,gen=2,cpus=9,memory=64,os=x=y,host=HV2,disk=a,disk=b", "name=..,disk=a", ",=", "disk=", "name=C:\\x,disk=a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := parseVM(text, 3)
		if err != nil {
			return
		}
		s := v.spec
		if s.Name == "" || strings.ContainsAny(s.Name, `/\:`) || strings.Trim(s.Name, ".") == "" || len(v.images) == 0 || s.Generation < 1 || s.Generation > 2 || s.CPUs < 1 || s.MemoryMB < 32 {
			t.Errorf("%q is taken for %+v", text, v)
		}
	})
}
