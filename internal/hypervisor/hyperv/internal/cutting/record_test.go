package cutting

import (
	"errors"
	"io/fs"
	"os"
	"testing"
	"time"
)

// FuzzTokenRecord: whatever a record's file holds, it is either refused or a record of that very token.
func FuzzTokenRecord(f *testing.F) {
	const vm, token = "00000000-0000-4000-8000-000000000001", "hf-a"
	for _, s := range []string{
		"", "{}", "null", `{"version":1}`, `{"version":1,"vm":"` + vm + `","token":"hf-a","phase":"ended","point":"Microsoft:X","disks":[{"id":"d","size":5}],"made":"2026-01-02T03:04:05Z"}`,
		`{"version":1,"vm":"` + vm + `","token":"hf-a","phase":"melting"}`, `{"version":2,"vm":"` + vm + `","token":"hf-a","phase":"ended"}`,
		`{"version":1,"vm":"` + vm + `","token":"hf-a","phase":"ended","disks":[{"id":"d","size":-5}]}`, `{"version":1,"vm":"` + vm + `","token":"hf-b","phase":"open"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := store{t.TempDir()}
		if err := os.MkdirAll(s.vmDir(vm), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.path(vm, token), b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := s.get(vm, token)
		if (r == nil) == (err == nil) {
			t.Fatalf("%+v, %v", r, err)
		}
		if errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("a damaged record counts as none: %v", err)
		}
		if r == nil {
			return
		}
		if r.Token != token || r.VM != vm || r.Phase == "" {
			t.Fatalf("record %+v", r)
		}
		if err := s.put(r); err != nil {
			t.Fatal(err)
		}
		if again, err := s.get(vm, token); err != nil || again.Phase != r.Phase || len(again.Disks) != len(r.Disks) {
			t.Fatalf("%+v, %v", again, err)
		}
	})
}

func TestStoreTokens(t *testing.T) {
	t.Parallel()
	s := store{t.TempDir()}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i, name := range []string{"hf-c", "hf-a", "hf-b"} {
		if err := s.put(&tokenRecord{VM: "vm", Token: name, Phase: phaseEnded, Made: at.Add(time.Duration(i) * time.Second)}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.tokens("vm")
	if err != nil || len(list) != 3 || list[0].Token != "hf-c" || list[2].Token != "hf-b" {
		t.Fatalf("%v, %v", list, err)
	}
	for _, bad := range []string{"", "hf-", "hf-../x", `hf-a\b`, "other"} {
		if _, err := s.get("vm", bad); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
