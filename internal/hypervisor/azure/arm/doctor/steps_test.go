package doctor

import (
	"testing"

	"holdfast/internal/hypervisor/azure/arm"
)

func TestAllows(t *testing.T) {
	t.Parallel()
	contributor := []grant{{Actions: []string{"*"}, NotActions: []string{"Microsoft.Authorization/*/Delete", "Microsoft.Authorization/*/Write"}}}
	for _, x := range []struct {
		list   []grant
		action string
		want   bool
	}{
		{contributor, "Microsoft.Compute/disks/write", true}, {contributor, "microsoft.authorization/locks/delete", false}, {nil, "a/read", false},
		{[]grant{{Actions: []string{"*/read"}}}, "Microsoft.Compute/disks/read", true}, {[]grant{{Actions: []string{"*/read"}}}, "Microsoft.Compute/disks/write", false},
		{[]grant{{Actions: []string{"Microsoft.Compute/*"}, NotActions: []string{"*/delete"}}, {Actions: []string{"Microsoft.Compute/disks/delete"}}}, "Microsoft.Compute/disks/delete", true},
		{[]grant{{Actions: []string{"Microsoft.Compute/*/a*c"}}}, "Microsoft.Compute/x/abc", true}, {[]grant{{Actions: []string{"ab*ba"}}}, "aba", false},
	} {
		if got := allows(x.list, x.action); got != x.want {
			t.Errorf("%v %s: %v", x.list, x.action, got)
		}
	}
	for _, a := range arm.Actions() {
		if !allows(contributor, a) {
			t.Errorf("%s is not part of Contributor", a)
		}
	}
}

func TestFree(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		prefix string
		used   int
		want   int64
	}{{"10.0.0.0/24", 0, 251}, {"10.0.0.0/29", 3, 0}, {"10.0.0.0/29", 9, 0}, {"fd00::/64", 1, -1}, {"x", 0, -1}} {
		if got := free([]string{x.prefix}, x.used); got != x.want {
			t.Errorf("%s %d: %d", x.prefix, x.used, got)
		}
	}
}
