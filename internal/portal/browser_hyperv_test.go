package portal

import (
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// TestHyperVByKeyboard checks a site's readiness and maps networks with a keyboard.
func TestHyperVByKeyboard(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	f := busyDay(time.Now).hyperv()
	b := openBrowser(t, f)
	b.signIn()
	enter := func(css string) { // follows a link
		t.Helper()
		b.within(chromedp.Focus(chromedp.CSS(css)))
		_, err := chromedp.RunResponse(b.ctx, chromedp.KeyEvent("\r"))
		b.must(err)
	}
	b.open("/portal/sites/vmm01.contoso.com")
	enter("a[href$='/readiness']")
	b.says("Readiness of vmm01.contoso.com")
	b.until("the target where the VMs recover", "document.querySelector('.choose [aria-current]').innerText === 'Hyper-V hosts'")
	enter(".choose a[href*='target=azure']")
	b.until("Azure", "document.querySelector('.choose [aria-current]').innerText === 'Microsoft Azure'")
	enter("a[href*='show=blocked']")
	b.until("the blocked VMs alone", "document.querySelectorAll('[aria-labelledby=h-vms] tbody > tr').length === 2")

	b.open("/portal/sites/berlin/networks")
	b.until("the event stream", "document.documentElement.dataset.stream === 'on'")
	enter("a[aria-label='Map default']")
	b.until("the dialog with that network", "document.querySelector('#dlg-map:modal select[name=network]').value === 'default'")
	b.until("the fields of a site alone", "!document.getElementById('map-site').hidden && document.getElementById('map-cloud').hidden")
	b.within(chromedp.Focus(chromedp.CSS("#dlg-map select[name=target]")), chromedp.KeyEvent("Prod"), chromedp.Focus(chromedp.CSS("#dlg-map button[type=submit]")))
	enter("#dlg-map button[type=submit]")
	b.says("Prod switch")
	b.until("a clean address", "!location.search.includes('ask')")
	b.within(chromedp.Focus(chromedp.CSS("a[aria-label='Remove the mapping of lan to lab']")), chromedp.KeyEvent(" "))
	b.until("the dialog", "document.querySelector('dialog[id^=dlg-unmap]:modal') !== null")
	b.within(chromedp.KeyEvent("\x1b"))
	b.until("the dialog to close", "document.querySelector('dialog[open]') === null")
	if f.called("RemoveNetworkMapping") {
		t.Error("Escape has removed a mapping")
	}
	b.within(chromedp.Focus(chromedp.CSS("a[aria-label='Remove the mapping of lan to lab']")), chromedp.KeyEvent(" "))
	b.until("the dialog again", "document.querySelector('dialog[id^=dlg-unmap]:modal') !== null")
	b.leave("dialog[id^=dlg-unmap]:modal button[type=submit]")
	b.until("the mapping to be gone", "document.querySelector(\"a[aria-label='Remove the mapping of lan to lab']\") === null")
	for _, want := range []string{"CreateNetworkMapping default-to-munich 0c6b7a52-aaaa default -> 0c6b7a52-cccc net-5f2b", "RemoveNetworkMapping 0c6b7a52-aaaa lan m"} {
		if !f.called(want) {
			t.Errorf("%q did not reach the vault: %v", want, f.calls)
		}
	}
}

// TestHyperVLooks takes the pictures of the pages of Hyper-V sites.
func TestHyperVLooks(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	f := busyDay(time.Now).hyperv()
	f.add(6, nil) // sql01
	b := openBrowser(t, f)
	b.look(1280, "light")
	b.signIn()
	const scvmm = "/portal/sites/vmm01.contoso.com"
	for _, look := range []struct {
		name, scheme string
		width        int64
	}{{"1280-light", "light", 1280}, {"1280-dark", "dark", 1280}, {"800-light", "light", 800}, {"390-light", "light", 390}} {
		b.look(look.width, look.scheme)
		for _, p := range []struct{ name, path string }{
			{"sites", "/portal/sites"}, {"site-vmm", scvmm}, {"site-register", scvmm + "?ask=register"}, {"site-kvm", "/portal/sites/berlin"}, {"readiness", scvmm + "/readiness?target=azure"}, {"readiness-none", "/portal/sites/munich/readiness"},
			{"networks-vmm", scvmm + "/networks"}, {"networks-kvm", "/portal/sites/berlin/networks"}, {"networks-in", "/portal/sites/munich/networks"}, {"map", "/portal/sites/berlin/networks?ask=map&network=lan"}, {"unmap", "/portal/sites/berlin/networks?ask=unmap-0"},
			{"vms", "/portal/vms?site=vmm01.contoso.com"}, {"enable-ready", "/portal/vms/vmm01.contoso.com/5d0a7c11-0000/enable"}, {"enable-blocked", "/portal/vms/vmm01.contoso.com/5d0a7c11-0002/enable"}, {"enable-notes", "/portal/vms/vmm01.contoso.com/5d0a7c11-0001/enable"}, {"item", "/portal/items/77f0c3de-item-6"}} {
			b.open(p.path)
			if !b.eval("document.documentElement.scrollWidth <= innerWidth") {
				t.Errorf("%s is wider than the window at %s", p.name, look.name)
			}
			b.shot("hyperv-" + p.name + "-" + look.name)
		}
	}
}
