package policy

import (
	"testing"
	"time"

	"holdfast/internal/dr"
)

// TestPolicyForm: what a policy says survives being shown and saved.
func TestPolicyForm(t *testing.T) {
	t.Parallel()
	window := func(text string) dr.Window {
		w, err := dr.ParseWindow(text)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	for _, p := range []dr.Policy{
		{Name: "old", CopyFrequency: 30 * time.Second, Retention: 90 * time.Minute, Storage: "s"},
		{Name: "all", ID: "i", CopyFrequency: 5 * time.Minute, Retention: 24 * time.Hour, AppFrequency: time.Hour, StartTime: "2026-12-31T22:00:00+01:00", RetainHourly: 60 * time.Hour, RetainDaily: 30 * 24 * time.Hour,
			ResyncAuto: dr.ResyncManual, ResyncWindow: window("18:30-06:00"), ResyncThreshold: 0.125, InitialMode: dr.InitialSerial, InitialWindow: window("Sat-Sun 00:00-24:00"), InitialPriority: -3, Compression: dr.CompressionFast,
			Bandwidth: []dr.BandwidthRule{{Window: window("Mon-Fri 08:00-18:00"), BytesPerSecond: 5 << 20}, {Window: window("22:00-23:00"), BytesPerSecond: 0}, {BytesPerSecond: 123457}}},
		{Name: "off", CopyFrequency: time.Minute, Retention: 0, ResyncThreshold: -1, ResyncAuto: dr.ResyncNow},
	} {
		got, err := Shown(p).Policy(p)
		// The form names what the empty value stands for.
		want := p
		if want.ResyncAuto == "" {
			want.ResyncAuto, want.InitialMode, want.Compression, want.ResyncThreshold = dr.ResyncInWindow, dr.InitialParallel, dr.CompressionZstd, dr.DefaultResyncThreshold
		}
		if want.InitialMode == "" {
			want.InitialMode, want.Compression = dr.InitialParallel, dr.CompressionZstd
		}
		if err != nil || !got.Equal(want) {
			t.Errorf("%s: %+v, %v", p.Name, got, err)
		}
	}
	// A form that shows only the basic settings leaves the others alone.
	old := dr.Policy{Name: "x", CopyFrequency: time.Minute, RetainDaily: 240 * time.Hour, Compression: dr.CompressionNone}
	got, err := Form{Name: "x", Copy: "300", Retention: "24", AppEvery: "0"}.Policy(old)
	if err != nil || got.RetainDaily != old.RetainDaily || got.Compression != old.Compression || got.CopyFrequency != 5*time.Minute {
		t.Errorf("%+v, %v", got, err)
	}
}
