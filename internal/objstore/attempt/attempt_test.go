package attempt_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/attempt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const stall = 10 * time.Second
		ended := func(w *attempt.Watch) bool { synctest.Wait(); return w.Ctx.Err() != nil }

		w := attempt.NewWatch(t.Context(), stall, -1)
		for range 100 { // as long as something moves
			time.Sleep(9 * time.Second)
			w.Moved()
		}
		if ended(w) {
			t.Error("ended although bytes moved")
		}
		w.Pause()
		time.Sleep(time.Hour)
		if ended(w) {
			t.Error("ended while it was paused")
		}
		w.Sent()
		time.Sleep(4*stall - time.Second)
		if ended(w) {
			t.Error("ended before the answer was due")
		}
		time.Sleep(2 * time.Second)
		if !ended(w) || !strings.Contains(w.Explain(context.Canceled).Error(), "no byte moved") {
			t.Errorf("%v", w.Explain(context.Canceled))
		}
		w.Stop()
		w.Stop()

		w = attempt.NewWatch(t.Context(), stall, 0)
		for range 5 {
			time.Sleep(9 * time.Second)
			w.Moved()
		}
		if !ended(w) || !strings.Contains(w.Explain(context.Canceled).Error(), "was not done for 40s") {
			t.Errorf("%v", w.Explain(context.Canceled))
		}
		w.Stop()
	})
}

// TestExplain: no address and no proper end.
func TestExplain(t *testing.T) {
	t.Parallel()
	w := attempt.NewWatch(t.Context(), time.Minute, 0)
	defer w.Stop()
	err := w.Explain(&url.Error{Op: "Put", URL: "https://x/?sig=secret", Err: errors.New("refused")})
	if strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
	if err := w.Explain(&url.Error{Op: "Put", Err: io.EOF}); errors.Is(err, io.EOF) {
		t.Errorf("%v looks like a proper end", err)
	}
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	big := bytes.Repeat([]byte("0123456789abcdef"), 17<<20/16)
	sum := sha256.Sum256([]byte("contents"))
	for name, tt := range map[string]struct {
		r    io.Reader
		size int64
		sum  *[32]byte
		want error
	}{
		"seeker":         {strings.NewReader("contents"), 8, &sum, nil},
		"memory":         {iotest.OneByteReader(strings.NewReader("contents")), 8, &sum, nil},
		"file":           {io.MultiReader(bytes.NewReader(big)), int64(len(big)), nil, nil},
		"empty":          {strings.NewReader(""), 0, nil, nil},
		"short":          {strings.NewReader("content"), 8, nil, objstore.ErrMismatch},
		"long":           {iotest.OneByteReader(strings.NewReader("contents!")), 8, nil, objstore.ErrMismatch},
		"another digest": {strings.NewReader("CONTENTS"), 8, &sum, objstore.ErrMismatch},
		"broken":         {iotest.ErrReader(errBroken), 8, nil, errBroken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			also := md5.New()
			src, err := attempt.Prepare(t.Context(), tt.r, tt.size, tt.sum, also)
			if !errors.Is(err, tt.want) {
				t.Fatalf("%v", err)
			}
			if err != nil {
				return
			}
			defer src.Close()
			for range 3 { // as often as needed
				w := attempt.NewWatch(t.Context(), time.Minute, -1)
				body := attempt.Send(src, w)
				if _, err := body.Seek(0, io.SeekStart); err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(body)
				if err != nil || int64(len(got)) != src.Size || sha256.Sum256(got) != src.SHA256 || md5.Sum(got) != [16]byte(also.Sum(nil)) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				if err := body.Finish(); err != nil {
					t.Error(err)
				}
				// Nobody touches the source any more.
				if _, err := body.Read(make([]byte, 1)); err == nil {
					t.Error("read after Finish")
				}
				if _, err := body.Seek(0, io.SeekStart); err == nil {
					t.Error("seek after Finish")
				}
				w.Stop()
			}
		})
	}
}

var errBroken = errors.New("the disk is broken")

func TestPrepareStops(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := attempt.Prepare(ctx, strings.NewReader("contents"), 8, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestShrinks sends a source that loses bytes between hashing and sending.
func TestShrinks(t *testing.T) {
	t.Parallel()
	r := &shrinking{Reader: strings.NewReader("contents")}
	src, err := attempt.Prepare(t.Context(), r, 8, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	r.Reader = strings.NewReader("cont")
	w := attempt.NewWatch(t.Context(), time.Minute, -1)
	defer w.Stop()
	body := attempt.Send(src, w)
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(body); !errors.Is(err, objstore.ErrMismatch) {
		t.Errorf("read: %v", err)
	}
	if err := body.Finish(); !errors.Is(err, objstore.ErrMismatch) {
		t.Errorf("finish: %v", err)
	}
}

type shrinking struct{ *strings.Reader }
