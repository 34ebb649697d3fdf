// Command serve runs the in-memory vault of package armapitest for programs
// outside this module, such as the conformance tests. It writes the file that
// tells a client how to reach it, and ends when its standard input does.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"holdfast/internal/armapi"
	"holdfast/internal/armapi/armapitest"
	"holdfast/internal/dr"
)

func main() {
	dir := flag.String("dir", "", "directory for endpoint.json and ca.pem")
	step := flag.Duration("step", 200*time.Millisecond, "duration of one task of a job")
	pageSize := flag.Int("page-size", 0, "resources per page; 0 = the default")
	flag.Parse()
	if err := run(*dir, *step, *pageSize); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

func run(dir string, step time.Duration, pageSize int) error {
	f := armapitest.New(armapitest.Config{Step: step})
	in, err := armapitest.Start(f, armapi.Config{PageSize: pageSize})
	if err != nil {
		return err
	}
	defer in.Close()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, in.CA, 0o600); err != nil {
		return err
	}
	id := f.Identity()
	b, err := json.MarshalIndent(map[string]string{"url": in.URL, "caFile": ca, "tenantId": id.TenantID, "clientId": string(dr.RoleOwner), "clientSecret": armapitest.Secret,
		"subscriptionId": id.SubscriptionID, "resourceGroup": id.ResourceGroup, "vaultName": id.Name}, "", "  ")
	if err != nil {
		return err
	}
	// Written aside and renamed: whoever sees the file sees all of it.
	tmp := filepath.Join(dir, "endpoint.json.tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, "endpoint.json")); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
