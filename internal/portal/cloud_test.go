package portal

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"holdfast/internal/dr"
)

// TestRecoveryInAzure: an item that recovers in Azure can be given a size, and shows
// how ready its disks are; an item of another site has neither.
func TestRecoveryInAzure(t *testing.T) {
	t.Parallel()
	const id = "77f0c3de-item-1"
	show := func(azure bool, w *dr.WarmReplica) string {
		f := busyDay(fixed())
		for i := range f.fabrics {
			if azure && f.fabrics[i].Name == "hamburg" {
				f.fabrics[i].Type = dr.AzureSite
			}
		}
		f.detailOf(id).Warm = w
		r := newRig(t, f).as("carla")
		return r.text(r.do("GET", "/portal/items/"+id, nil))
	}
	now := fixed()()
	plain := show(false, nil)
	for _, no := range []string{`name="size"`, "Warm replica"} {
		if strings.Contains(plain, no) {
			t.Errorf("an item of a KVM site shows %s", no)
		}
	}
	text := show(true, &dr.WarmReplica{Gen: 1, N: 5, Time: now.Add(-40 * time.Minute), At: now})
	for _, want := range []string{`<option value="Standard_D2s_v5">`, "disabled>Standard_B1s", "it has 1024 MiB of memory", `name="warm" value="1"`, "Without it a failover copies the disks first", ">Ready<", "behind"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q", want)
		}
	}
	if text := show(true, &dr.WarmReplica{Problem: "the container is gone"}); !strings.Contains(text, "Not up to date") || !strings.Contains(text, "the container is gone") {
		t.Error("the problem of the warm replica is not shown")
	}
	r := newRig(t, busyDay(fixed())).as("carla")
	r.do("POST", "/portal/items/"+id+"/settings", url.Values{"cloud": {"1"}, "size": {"Standard_D2s_v5"}, "zone": {"2"}, "diskType": {"Premium_LRS"}, "warm": {"1"}})
	if last := r.f.calls[len(r.f.calls)-1]; !strings.Contains(last, "Cloud:{Size:Standard_D2s_v5 ResourceGroup: AvailabilitySet: Zone:2") || !strings.Contains(last, "Warm:true") {
		t.Errorf("it said %s", last)
	}
	// A form without these fields, of another kind of site, changes none of them.
	r.do("POST", "/portal/items/"+id+"/settings", url.Values{"name": {"x"}})
	if last := r.f.calls[len(r.f.calls)-1]; !strings.Contains(last, "RecoveryVMName:x") || !strings.Contains(last, "Size:Standard_D2s_v5") {
		t.Errorf("then %s", last)
	}
}

// TestAzureByKeyboard chooses a size and a warm replica in a browser, and takes the pictures.
func TestAzureByKeyboard(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	const id = "77f0c3de-item-1"
	f := busyDay(time.Now)
	for i := range f.fabrics {
		if f.fabrics[i].Name == "hamburg" {
			f.fabrics[i].Type = dr.AzureSite
		}
	}
	now := time.Now()
	f.detailOf(id).Warm = &dr.WarmReplica{Gen: 1, N: 5, Time: now.Add(-40 * time.Minute), At: now}
	b := openBrowser(t, f)
	b.look(1280, "light")
	b.signIn()
	b.open("/portal/items/" + id)
	b.says("Warm replica")
	b.shot("azure-item")
	b.open("/portal/items/" + id + "?ask=settings")
	b.until("the dialog", "document.querySelector('#dlg-settings:modal') !== null")
	if !b.eval("document.documentElement.scrollWidth <= innerWidth") {
		t.Error("the page is wider than the window")
	}
	b.shot("azure-settings")
	b.within(chromedp.Focus(chromedp.CSS("#dlg-settings select[name=size]")), chromedp.KeyEvent("Standard_D"))
	b.within(chromedp.Focus(chromedp.CSS("#dlg-settings input[name=warm]")), chromedp.KeyEvent(" "))
	b.leave("#dlg-settings button[type=submit]")
	b.until("the page again", "document.querySelector('dialog[open]') === null")
	f.mu.Lock()
	last := strings.Join(f.calls, "\n")
	f.mu.Unlock()
	if !strings.Contains(last, "Size:Standard_D2s_v5") || !strings.Contains(last, "Warm:true") {
		t.Errorf("calls: %s", last)
	}
}
