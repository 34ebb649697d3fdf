package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// tab is one tab of a real browser on the portal of a real vault.
type tab struct {
	t   *testing.T
	ctx context.Context
	dir string // of the screenshots
}

func openPortal(t *testing.T) *tab {
	t.Helper()
	b := &tab{t: t, dir: os.Getenv("HOLDFAST_SCREENSHOTS")}
	if b.dir == "" {
		b.dir = t.TempDir()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // outlives the test for its clean-up
	opts := []chromedp.ExecAllocatorOption{chromedp.ExecPath("/usr/bin/chromium"), chromedp.UserDataDir(t.TempDir()), chromedp.NoSandbox, chromedp.Headless, chromedp.DisableGPU,
		chromedp.NoFirstRun, chromedp.IgnoreCertErrors, chromedp.WindowSize(1280, 900), chromedp.WSURLReadTimeout(time.Minute)}
	for _, name := range []string{"disable-quic", "disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage"} {
		opts = append(opts, chromedp.Flag(name, true))
	}
	alloc, cancelAlloc := chromedp.NewExecAllocator(ctx, opts...)
	page, cancelTab := chromedp.NewContext(alloc)
	b.ctx = page
	b.do(chromedp.Do(page))
	var wg sync.WaitGroup
	var mu sync.Mutex
	var complaints []string
	messages := chromedp.Console(page)
	wg.Go(func() {
		for m, err := range messages {
			if err != nil {
				return
			}
			if m.Type == chromedp.ConsoleError || m.Type == chromedp.ConsoleException {
				mu.Lock()
				complaints = append(complaints, m.String())
				mu.Unlock()
			}
		}
	})
	t.Cleanup(func() {
		_ = chromedp.Cancel(page)
		cancelTab()
		cancelAlloc()
		wg.Wait()
		cancel()
		mu.Lock()
		defer mu.Unlock()
		for _, m := range complaints {
			t.Errorf("browser console: %s", m)
		}
	})
	return b
}

func (b *tab) do(err error) {
	b.t.Helper()
	if err != nil {
		b.shot("portal-failed")
		b.t.Fatal(err)
	}
}

func (b *tab) open(url string) {
	b.t.Helper()
	b.do(chromedp.Do(b.ctx, chromedp.Navigate(url)))
}

// leave clicks something that leads to another page.
func (b *tab) leave(css string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	_, err := chromedp.RunResponse(ctx, chromedp.Click(chromedp.CSS(css), chromedp.NodeVisible))
	b.do(err)
}

// until waits for a JavaScript condition; real guests boot meanwhile.
func (b *tab) until(what, js string) {
	b.t.Helper()
	const limit = 3 * time.Minute
	ctx, cancel := context.WithTimeout(b.ctx, limit+10*time.Second)
	defer cancel()
	_, err := chromedp.Run(ctx, chromedp.Poll[bool](js, chromedp.WithPollingInterval(200*time.Millisecond), chromedp.WithPollingTimeout(limit)))
	if err != nil {
		err = fmt.Errorf("wait for %s: %w", what, err)
	}
	b.do(err)
}

func (b *tab) says(text string) {
	b.t.Helper()
	b.until("the text "+text, "document.getElementById('main').innerText.includes('"+strings.ReplaceAll(text, "'", `\'`)+"')")
}

func (b *tab) shot(name string) {
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err == nil {
		err = os.WriteFile(filepath.Join(b.dir, name+".png"), png, 0o644)
	}
	if err != nil {
		b.t.Logf("screenshot %s: %v", name, err)
	}
}

// confirm opens a command's dialog and confirms it.
func (b *tab) confirm(verb string) {
	b.t.Helper()
	b.until(verb+" to be possible", "document.querySelector('a#cmd-"+verb+"') !== null")
	b.do(chromedp.Do(b.ctx, chromedp.Click(chromedp.CSS("#cmd-"+verb), chromedp.NodeVisible)))
	b.leave("#dlg-" + verb + " button[type=submit]")
}

// TestPortal clicks through the story's main path in a real browser, on a real
// vault with real agents and guests.
func TestPortal(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: boots real guests for minutes")
	}
	d := newDemo(t)
	for _, act := range []func(context.Context) error{d.build, d.bringUp, d.register, d.protect, d.oneMoreCycle} {
		if err := act(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	b := openPortal(t)
	b.open(d.cred.Portal)
	b.do(chromedp.Do(b.ctx, chromedp.SendKeys(chromedp.CSS("input[name=user]"), d.cred.User), chromedp.SendKeys(chromedp.CSS("input[name=password]"), d.cred.Password)))
	b.leave("button[type=submit]")
	b.says("Replication health")
	b.shot("real-1-overview")
	site := strings.TrimSuffix(d.cred.Portal, "/")
	for name, path := range map[string]string{"real-2-sites": "/sites", "real-3-vms": "/vms", "real-4-jobs": "/jobs"} {
		b.open(site + path)
		b.says("primary")
		b.shot(name)
	}
	b.open(site + "/items")
	b.says(vmName)
	b.leave("#main a[href^='/portal/items/']")
	b.says("Recovery points")
	b.shot("real-5-item")

	b.confirm("test-failover")
	b.says("Boot verified")
	b.until("the console picture", "document.querySelector('.drill img') && document.querySelector('.drill img').naturalWidth > 0")
	b.shot("real-6-tested")
	b.confirm("cleanup-test")
	b.until("failover to be possible again", "document.querySelector('a#cmd-failover') !== null && document.querySelector('a#cmd-test-failover') !== null")

	if err := d.guest.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.sites[0].agent.kill()
	b.confirm("failover")
	b.says("commit pending")
	b.until("commit to be possible", "document.querySelector('a#cmd-commit') !== null")
	b.shot("real-7-commit-pending")
	b.confirm("commit")
	b.says("committed")
	b.shot("real-8-committed")
	if it := d.get(t); it.Properties.ActiveLocation != "Recovery" {
		t.Errorf("active location is %s", it.Properties.ActiveLocation)
	}
}
