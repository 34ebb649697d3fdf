// Package recovery holds what a failover does on each kind of recovery site,
// one package per kind: kvm now, azure later. The package itself is empty: the
// contract of a site is declared where it is used (package agent).
package recovery
