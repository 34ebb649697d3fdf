// Package operate holds the commands that work over the vault's REST API:
// log in, look, protect, test, fail over.
//
// It promises that a change is followed to the end of its job unless --no-wait
// is given, that ending the command never ends the job, and that nothing is
// destroyed without a question or --yes.
package operate

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/armclient"
	"holdfast/internal/dr"
)

type app struct{ *console.Console }

// Daily are the commands of every day.
func Daily(c *console.Console) []*cobra.Command {
	a := &app{c}
	return []*cobra.Command{a.itemCommand(), a.pointCommand(), a.groupCommand(), a.jobCommand(), a.vmCommand()}
}

// Setup are the commands that set replication up.
func Setup(c *console.Console) []*cobra.Command {
	a := &app{c}
	return []*cobra.Command{a.loginCommand(), a.siteCommand(), a.providerCommand(), a.policyCommand(), a.mappingCommand(), a.networkCommand()}
}

// Offline are the commands that need no vault.
func Offline(c *console.Console) []*cobra.Command {
	return []*cobra.Command{(&app{c}).errorsCommand()}
}

const (
	// EndpointName is the customary name of an endpoint file.
	EndpointName = "endpoint.json"
	// endpointEnv names the endpoint file and wins over 'holdfast login'.
	endpointEnv = "HOLDFAST_ENDPOINT"
)

// Endpoint is an endpoint file: which vault, and as whom. It holds a secret.
type Endpoint struct {
	URL            string `json:"url"`
	CAFile         string `json:"caFile"` // relative to the endpoint file
	TenantID       string `json:"tenantId"`
	ClientID       string `json:"clientId"`
	ClientSecret   string `json:"clientSecret"`
	SubscriptionID string `json:"subscriptionId"`
	ResourceGroup  string `json:"resourceGroup"`
	VaultName      string `json:"vaultName"`
}

// loginConfig is config.json of the user's configuration directory.
type loginConfig struct {
	Version  int    `json:"version"` // 1
	Endpoint string `json:"endpoint"`
}

// loginPath is where 'holdfast login' remembers the endpoint file.
func loginPath() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", dr.Errorf(dr.KindPrecondition, "holdfast.login", "find the configuration directory: %w", err).WithHint("Set %s to the endpoint file instead.", endpointEnv)
	}
	return filepath.Join(dir, "holdfast", "config.json"), nil
}

// endpointFile says which endpoint file counts.
func endpointFile() (string, error) {
	if p := os.Getenv(endpointEnv); p != "" {
		return p, nil
	}
	path, err := loginPath()
	if err != nil {
		return "", err
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", dr.Errorf(dr.KindUnauthenticated, "holdfast.login", "not logged in to a vault").
			WithHint("Run 'holdfast login --endpoint FILE' with the vault's endpoint.json, or set %s to it.", endpointEnv)
	}
	if err != nil {
		return "", console.ClassifyAs(err, "read the configuration")
	}
	var cfg loginConfig
	if err := json.Unmarshal(raw, &cfg); err != nil || cfg.Version != 1 || cfg.Endpoint == "" {
		return "", dr.Errorf(dr.KindInvalid, "holdfast.login", "%s can't be used", path).WithHint("Run 'holdfast login --endpoint FILE' again.")
	}
	return cfg.Endpoint, nil
}

// connect makes a client of the vault of the user's choice; it does not ask it anything.
func (a *app) connect() (*armclient.Client, error) {
	path, err := endpointFile()
	if err != nil {
		return nil, err
	}
	_, c, err := a.open(path)
	return c, err
}

func (a *app) open(path string) (Endpoint, *armclient.Client, error) {
	var ep Endpoint
	info, err := os.Stat(path)
	if err != nil {
		return ep, nil, console.ClassifyAs(err, "read the endpoint file")
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		a.Say("warning: %s holds a secret and can be read by others; run: chmod 600 %s", path, path)
	}
	raw, err := console.ReadSmall(path)
	if err != nil {
		return ep, nil, console.ClassifyAs(err, "read the endpoint file")
	}
	if err := json.Unmarshal(raw, &ep); err != nil {
		return ep, nil, dr.Errorf(dr.KindInvalid, "holdfast.login", "%s is not an endpoint file: %w", path, err)
	}
	if ep.CAFile != "" && !filepath.IsAbs(ep.CAFile) {
		ep.CAFile = filepath.Join(filepath.Dir(path), ep.CAFile)
	}
	c, err := armclient.New(armclient.Config{URL: ep.URL, CAFile: ep.CAFile, TenantID: ep.TenantID, ClientID: ep.ClientID, ClientSecret: ep.ClientSecret,
		SubscriptionID: ep.SubscriptionID, ResourceGroup: ep.ResourceGroup, Vault: ep.VaultName, PollInterval: a.Poll})
	return ep, c, err
}

// withClient is a command's body that talks to the vault.
func (a *app) withClient(run func(ctx context.Context, c *armclient.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.Close()
		return run(cmd.Context(), c, args)
	}
}

func (a *app) loginCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "login --endpoint FILE", Short: "Choose the vault that commands talk to", Args: cobra.NoArgs,
		Long: "Remember an endpoint file, after trying it. The file is not copied. The environment variable\n" + endpointEnv + " wins over what is remembered.",
		RunE: func(c *cobra.Command, _ []string) error {
			path, err := filepath.Abs(file)
			if err != nil {
				return console.Usage("--endpoint: %v", err)
			}
			ep, client, err := a.open(path)
			if err != nil {
				return err
			}
			defer client.Close()
			if _, err := client.Fabrics(c.Context()); err != nil {
				return err
			}
			to, err := loginPath()
			if err != nil {
				return err
			}
			raw, err := json.MarshalIndent(loginConfig{1, path}, "", "  ")
			if err == nil {
				err = os.MkdirAll(filepath.Dir(to), 0o700)
			}
			if err == nil {
				err = console.ReplaceFile(to, append(raw, '\n'), 0o600)
			}
			if err != nil {
				return console.ClassifyAs(err, "remember the endpoint file")
			}
			if env := os.Getenv(endpointEnv); env != "" && env != path {
				a.Say("warning: %s is set to %s and wins", endpointEnv, env)
			}
			return a.Describe(map[string]string{"vault": ep.VaultName, "url": ep.URL, "endpoint": path}, console.F("vault", ep.VaultName), console.F("url", ep.URL), console.F("endpoint", path))
		},
	}
	c.Flags().StringVar(&file, "endpoint", "", "endpoint file of the vault")
	console.Required(c, "endpoint")
	return c
}

// complete offers live names of the vault on the command line's first argument.
func (a *app) complete(names func(ctx context.Context, c *armclient.Client) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		quiet := *a.Console
		quiet.JSON = true // no warnings into the shell
		c, err := (&app{&quiet}).connect()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		all, _ := names(ctx, c) // a shell has no use for errors
		var fit []string
		for _, n := range all {
			if strings.HasPrefix(strings.ToLower(n), strings.ToLower(prefix)) {
				fit = append(fit, console.Clean(n, false))
			}
		}
		return fit, cobra.ShellCompDirectiveNoFileComp
	}
}

// find returns the one element that ref names.
func find[T any](all []T, kind, ref, where string, match func(T) bool) (T, error) {
	var found []T
	for _, x := range all {
		if match(x) {
			found = append(found, x)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		var none T
		return none, dr.New(dr.KindNotFound, dr.CodeNotFound, "holdfast", "there is no %s %q", kind, ref).WithHint("See '%s'.", where)
	}
	return found[0], console.Usage("%d of the %ss are called %q", len(found), kind, ref).WithHint("Use the id; see '%s'.", where)
}
