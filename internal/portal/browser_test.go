package portal

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"holdfast/internal/dr"
)

// browser is one tab of a real browser on a portal over TLS. Every message of
// the console at the level error or warning fails the test.
type browser struct {
	t    *testing.T
	ctx  context.Context
	url  string
	dir  string // of the screenshots
	mu   sync.Mutex
	quit []string
}

func openBrowser(t *testing.T, f *fake) *browser {
	t.Helper()
	path := "/usr/bin/chromium"
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the browser test needs Debian's chromium: %v", err)
	}
	h, err := New(Config{Vault: f, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), InstallCommand: "curl -fsSO https://vault.example/download/holdfast && sudo install holdfast /usr/local/bin"})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewTLSServer(h)
	b := &browser{t: t, url: srv.URL, dir: os.Getenv("HOLDFAST_SCREENSHOTS")}
	if b.dir == "" {
		b.dir = t.TempDir()
	} else if err := os.MkdirAll(b.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute) // outlives the test for its clean-up
	opts := []chromedp.ExecAllocatorOption{chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.NoSandbox, chromedp.Headless, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.IgnoreCertErrors,
		chromedp.WindowSize(1280, 900), chromedp.WSURLReadTimeout(time.Minute)}
	for _, name := range []string{"disable-quic", "disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage", "hide-scrollbars"} {
		opts = append(opts, chromedp.Flag(name, true))
	}
	alloc, cancelAlloc := chromedp.NewExecAllocator(ctx, opts...)
	tab, cancelTab := chromedp.NewContext(alloc)
	b.ctx = tab
	b.must(chromedp.Do(tab))
	var wg sync.WaitGroup
	messages := chromedp.Console(tab)
	wg.Go(func() {
		for m, err := range messages {
			if err != nil {
				return
			}
			if m.Type == chromedp.ConsoleError || m.Type == chromedp.ConsoleWarning || m.Type == chromedp.ConsoleException {
				b.mu.Lock()
				b.quit = append(b.quit, m.String())
				b.mu.Unlock()
			}
		}
	})
	t.Cleanup(func() {
		if t.Failed() {
			b.shot("failed")
		}
		if err := chromedp.Cancel(tab); err != nil {
			t.Logf("close the browser: %v", err)
		}
		cancelTab()
		cancelAlloc()
		wg.Wait()
		cancel()
		srv.CloseClientConnections()
		srv.Close()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, m := range b.quit {
			t.Errorf("browser console: %s", m)
		}
	})
	return b
}

func (b *browser) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// within bounds one wait.
func (b *browser) within(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 40*time.Second)
	defer cancel()
	b.must(chromedp.Do(ctx, steps...))
}

func (b *browser) open(path string) { b.t.Helper(); b.within(chromedp.Navigate(b.url + path)) }

// leave clicks something that leads to another page.
func (b *browser) leave(css string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 40*time.Second)
	defer cancel()
	_, err := chromedp.RunResponse(ctx, chromedp.Click(chromedp.CSS(css), chromedp.NodeVisible))
	b.must(err)
}

func (b *browser) click(css string) {
	b.t.Helper()
	b.within(chromedp.Click(chromedp.CSS(css), chromedp.NodeVisible))
}

// until waits for a JavaScript condition.
func (b *browser) until(what, js string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 40*time.Second)
	defer cancel()
	if _, err := chromedp.Run(ctx, chromedp.Poll[bool](js, chromedp.WithPollingInterval(100*time.Millisecond), chromedp.WithPollingTimeout(35*time.Second))); err != nil {
		b.shot("failed-wait")
		b.t.Fatalf("wait for %s: %v", what, err)
	}
}

func (b *browser) says(text string) {
	b.t.Helper()
	b.until("the text "+text, "document.getElementById('main').innerText.includes("+quoteJS(text)+")")
}

func quoteJS(s string) string {
	return "'" + strings.NewReplacer("'", `\'`, "\n", `\n`).Replace(s) + "'"
}

func (b *browser) eval(js string) bool {
	b.t.Helper()
	ok, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool](js))
	b.must(err)
	return ok
}

// look sets the window's width and the colours.
func (b *browser) look(width int64, scheme string) {
	b.t.Helper()
	b.within(chromedp.EmulateViewport(width, 900), chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}})
		return err
	}))
}

func (b *browser) shot(name string) {
	b.t.Helper()
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		b.t.Logf("screenshot %s: %v", name, err)
		return
	}
	b.must(os.WriteFile(filepath.Join(b.dir, name+".png"), png, 0o644))
}

func (b *browser) signIn() {
	b.t.Helper()
	b.open("/portal")
	b.within(chromedp.SendKeys(chromedp.CSS("input[name=user]"), "admin"), chromedp.SendKeys(chromedp.CSS("input[name=password]"), "secret-admin"))
	b.leave("button[type=submit]")
	b.says("Replication health")
}

// TestMainPath is what an administrator does on the first day, in a browser:
// enable, watch, test, clean up, fail over, commit.
func TestMainPath(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	f := newFake(time.Now).sites()
	f.step = 700 * time.Millisecond
	b := openBrowser(t, f)
	b.look(1280, "light")
	b.signIn()
	b.shot("path-1-start")
	b.open("/portal/vms")
	b.leave("a[href='/portal/vms/berlin/3f2b8a10-0000/enable']")
	b.says("Disks to replicate")
	b.shot("path-2-enable")
	b.leave("form.wizard button[type=submit]")
	b.until("the event stream", "document.documentElement.dataset.stream === 'on'")
	b.says("Initial replication")
	b.until("a progress bar", "document.querySelector('.phase progress') !== null")
	b.shot("path-3-initial-replication")
	b.until("protection, without a reload", "document.querySelector('#cmd-test-failover') !== null")

	b.click("#cmd-test-failover")
	b.until("a modal dialog with the focus", "document.querySelector('#dlg-test-failover:modal') !== null && document.activeElement.closest('dialog') !== null")
	b.shot("path-4-dialog")
	b.leave("#dlg-test-failover button[type=submit]")
	b.says("Test failover: clean-up pending")
	b.says("Boot verified")
	b.until("the console picture", "document.querySelector('.drill img') && document.querySelector('.drill img').naturalWidth > 0")
	b.shot("path-5-tested")
	b.until("clean-up to be possible", "document.querySelector('a#cmd-cleanup-test') !== null")
	b.click("#cmd-cleanup-test")
	b.within(chromedp.SendKeys(chromedp.CSS("#dlg-cleanup-test textarea"), "logged in, database answers"))
	b.leave("#dlg-cleanup-test button[type=submit]")
	b.until("failover to be possible", "document.querySelector('a#cmd-failover') !== null && !document.getElementById('main').innerText.includes('Never tested')")

	b.click("#cmd-failover")
	b.leave("#dlg-failover button[type=submit]")
	b.says("Failed over, commit pending")
	b.until("commit to be possible", "document.querySelector('a#cmd-commit') !== null")
	b.shot("path-6-commit-pending")
	b.click("#cmd-commit")
	b.leave("#dlg-commit button[type=submit]")
	b.says("Failover committed")
	for _, want := range []string{"StartFailover test", "CleanupTest logged in, database answers", `StartFailover unplanned point="" network="" offline=false source=true`, "Commit "} {
		if !f.called(want) {
			t.Errorf("%q did not reach the vault: %v", want, f.calls)
		}
	}
	b.open("/portal/jobs")
	b.says("Commit failover")
	b.leave("table.jobs a[href^='/portal/jobs/']")
	b.says("Tasks")
}

// TestKeyboardAndDialogs: what script adds works without a pointer, and live
// updates do not disturb what somebody types.
func TestKeyboardAndDialogs(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	f := busyDay(time.Now)
	b := openBrowser(t, f)
	b.signIn()
	b.open("/portal/items/77f0c3de-item-1")
	b.until("the event stream", "document.documentElement.dataset.stream === 'on'")
	b.within(chromedp.Focus(chromedp.CSS("#cmd-disable")), chromedp.KeyEvent("\r"))
	b.until("the dialog", "document.querySelector('#dlg-disable:modal') !== null")
	if !b.eval("document.querySelector('#dlg-disable button[type=submit]').disabled") {
		t.Error("disable can be confirmed without the name")
	}
	b.within(chromedp.SendKeys(chromedp.CSS("#dlg-disable input[name=confirm]"), "db0"))
	f.mu.Lock()
	f.tell("item", "77f0c3de-item-1")
	f.mu.Unlock()
	time.Sleep(time.Second) // longer than a live update would take
	if !b.eval("document.querySelector('#dlg-disable:modal') !== null && document.querySelector('#dlg-disable input[name=confirm]').value === 'db0'") {
		t.Error("a live update has disturbed the dialog")
	}
	b.within(chromedp.SendKeys(chromedp.CSS("#dlg-disable input[name=confirm]"), "1"))
	b.until("the button", "!document.querySelector('#dlg-disable button[type=submit]').disabled")
	b.within(chromedp.KeyEvent("\x1b"))
	b.until("the dialog to close", "document.querySelector('dialog[open]') === null")
	if f.called("Disable") {
		t.Error("Escape has disabled protection")
	}
	// A change shows by itself.
	f.mu.Lock()
	f.items[0].Paused = true
	f.tell("item", "77f0c3de-item-1")
	f.mu.Unlock()
	b.says("Paused")
	// The link of a list opens the dialog of the item's page, and drops out of the address.
	b.open("/portal/items/77f0c3de-item-1?ask=failover")
	b.until("the dialog of the link", "document.querySelector('#dlg-failover:modal') !== null")
	b.click("#dlg-failover [data-close]")
	b.until("a clean address", "location.search === ''")
	// A recovery point of the table is the one in the dialog.
	b.within(chromedp.Evaluate[chromedp.Void]("document.querySelectorAll('a[data-point]')[4].click()"))
	b.until("the point", "document.querySelector('#dlg-test-failover select[name=point]').value === document.querySelectorAll('a[data-point]')[4].dataset.point")
}

// TestReplicationByKeyboard does with a keyboard what the cards of the item's page offer.
func TestReplicationByKeyboard(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	f := busyDay(time.Now).replicating()
	b := openBrowser(t, f)
	b.signIn()
	enter := func(css string) {
		t.Helper()
		b.within(chromedp.Focus(chromedp.CSS(css)), chromedp.KeyEvent("\r"))
	}
	b.open("/portal/items/77f0c3de-item-2")
	enter(".anomaly a[data-point]")
	good := f.detail["77f0c3de-item-2"].Anomaly.Good
	b.until("the last good point", "document.querySelector('#dlg-test-failover:modal select[name=point]').value === '"+good+"'")
	b.within(chromedp.KeyEvent("\x1b"))
	b.open("/portal/items/77f0c3de-item-1")
	enter("#cmd-pause")
	b.until("the dialog", "document.querySelector('#dlg-pause:modal') !== null")
	b.within(chromedp.SendKeys(chromedp.CSS("#dlg-pause input[name=reason]"), "moving disks"))
	b.leave("#dlg-pause button[type=submit]")
	b.says("moving disks")
	b.leave("#cmd-resume")
	b.until("the pause to end", "document.querySelector('#cmd-pause') !== null")
	b.leave("a[href*='ask=point']")
	b.until("the dialog of the point", "document.querySelector('#dlg-point:modal') !== null")
	b.within(chromedp.SendKeys(chromedp.CSS("#dlg-point input[name=label]"), "before the move"))
	b.leave("#dlg-point button[type=submit]")
	b.says("before the move")
	enter("section a[data-dialog=dlg-disks]")
	b.until("the dialog of disks", "document.querySelector('#dlg-disks:modal') !== null")
	b.click("#dlg-disks input[value=vdb]")
	b.leave("#dlg-disks button[type=submit]")
	b.until("both disks", "document.querySelectorAll('[aria-labelledby=h-disks] .pill.good').length === 2")
	for _, want := range []string{`Pause 77f0c3de-item-1 true "moving disks"`, "Pause 77f0c3de-item-1 false", "ChangeDisks 77f0c3de-item-1 [vda vdb]", "NamePoint 77f0c3de-item-1 " + f.points["77f0c3de-item-1"][0].Name() + ` "before the move" true`} {
		if !f.called(want) {
			t.Errorf("%q did not reach the vault: %v", want, f.calls)
		}
	}
}

// TestLooks takes the pictures by which people judge the pages, and checks that
// nothing sticks out sideways.
func TestLooks(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	f := busyDay(time.Now).replicating()
	f.add(0, func(it *dr.ProtectedItem, st *dr.ReplicationStatus) {
		it.Protection, it.Health = dr.InitialReplication, dr.HealthWarning
		it.HealthErrors = []dr.HealthError{{Code: "InitialReplicationNotComplete", Severity: dr.HealthWarning, Message: "Initial replication of web01 is not complete (43 %).", Cause: "The disks are being sent for the first time.", Remedy: "Wait until the initial replication is complete.", Since: f.now().Add(-4 * time.Minute)}}
		*st = dr.ReplicationStatus{Phase: "initialReplication", Percent: 43.2, BytesDone: 17 << 30, BytesTotal: 40 << 30, ETA: 11 * time.Minute, At: f.now()}
		f.points[it.ID] = nil
	})
	f.step = time.Hour // a job that runs for the length of the test
	running := f.start("UnplannedFailover", "Failover", "olaf", nil, "mail01", nil, "PrerequisitesCheck", "Check prerequisites", "Prepare", "Prepare the recovery point", "StartRecoveryVM", "Start the recovery VM", "VerifyBoot", "Wait for a sign of life")
	j := f.jobs[len(f.jobs)-1]
	now := f.now()
	j.Created, j.Started = now.Add(-42*time.Second), now.Add(-42*time.Second)
	for i := range 2 {
		j.Tasks[i].State, j.Tasks[i].Started, j.Tasks[i].Ended, j.Tasks[i].Attempt = dr.JobSucceeded, now.Add(-42*time.Second), now.Add(-time.Duration(40-i*25)*time.Second), 1+i
	}
	j.Tasks[1].Ended = now.Add(-25 * time.Minute)
	b := openBrowser(t, f)
	b.look(1280, "light")
	b.open("/portal/signin")
	b.shot("signin-1280-light")
	b.signIn()
	for _, look := range []struct {
		name, scheme string
		width        int64
	}{{"1280-light", "light", 1280}, {"1280-dark", "dark", 1280}, {"800-light", "light", 800}, {"390-light", "light", 390}} {
		b.look(look.width, look.scheme)
		for _, p := range []struct{ name, path string }{
			{"overview", "/portal"}, {"items", "/portal/items"}, {"item", "/portal/items/77f0c3de-item-1"}, {"item-critical", "/portal/items/77f0c3de-item-2"}, {"item-ir", "/portal/items/77f0c3de-item-0"}, {"item-dialog", "/portal/items/77f0c3de-item-1?ask=failover"}, {"item-pause", "/portal/items/77f0c3de-item-1?ask=pause"}, {"item-disks", "/portal/items/77f0c3de-item-1?ask=disks"}, {"item-events", "/portal/items/77f0c3de-item-1/events"},
			{"groups", "/portal/groups"}, {"group", "/portal/groups/c0ffee00-group"}, {"group-members", "/portal/groups/c0ffee00-group?ask=members"}, {"store", "/portal/store"}, {"policy-create", "/portal/policies?ask=create"},
			{"sites", "/portal/sites"}, {"site", "/portal/sites/berlin"}, {"site-register", "/portal/sites/berlin?ask=register"}, {"vms", "/portal/vms?all=1"}, {"enable", "/portal/vms/berlin/3f2b8a10-0003/enable"}, {"policies", "/portal/policies"},
			{"policy", "/portal/policies/gold-5min"}, {"jobs", "/portal/jobs"}, {"job", "/portal/jobs/" + string(running)}, {"job-failed", "/portal/jobs/018f-failed"}, {"job-done", "/portal/jobs/018f-drill"}, {"jobs-none", "/portal/jobs?state=waiting"}} {
			if strings.Contains(p.path, "ask=") && (look.width == 800 || look.scheme == "dark") {
				continue
			}
			b.open(p.path)
			if !b.eval("document.documentElement.scrollWidth <= innerWidth") {
				t.Errorf("%s is wider than the window at %s", p.name, look.name)
			}
			b.shot(p.name + "-" + look.name)
		}
	}
	f.mu.Lock()
	f.fabrics, f.hosts, f.vms, f.policies, f.items, f.jobs, f.maps = nil, nil, nil, nil, nil, nil, nil
	f.groups = nil
	f.mu.Unlock()
	b.look(1280, "light")
	for _, name := range []string{"", "/items", "/sites", "/vms", "/policies", "/groups", "/store"} {
		b.open("/portal" + name)
		b.shot("empty" + strings.ReplaceAll(name, "/", "-"))
	}
}
