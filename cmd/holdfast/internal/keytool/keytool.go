// Package keytool is 'holdfast vault key': making, sealing, copying, changing and
// proving the vault's private key. docs/keys.md tells people what to do with it.
//
// It promises that no file is replaced or deleted, and that neither a key nor a
// passphrase nor the value of a share is printed or taken from a command line.
package keytool

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/storage"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/keyfile"
)

// Vault is what the commands have to know of a vault's data directory.
type Vault struct {
	// Config tells the vault's name and its store; dr.KindNotFound where no vault is.
	Config func(dir string) (name string, at storage.Address, err error)
	// Switch makes next the key of a vault that is not running: it seals the
	// vault's secrets again and writes the configuration. It may be repeated.
	Switch func(ctx context.Context, dir string, old, next cut.VaultPrivateKey, to storage.KeyFlags) error
}

type app struct {
	*console.Console
	vault Vault
}

// Command is 'holdfast vault key'.
func Command(c *console.Console, v Vault) *cobra.Command {
	a := &app{c, v}
	cmd := &cobra.Command{Use: "key", Short: "The vault's private key: copies, passphrases, rotation, drills",
		Long: "Everything in a store can be read with the vault's private key, and with nothing else. docs/keys.md\n" +
			"says where to keep it, how to change it, and what is lost without it.\n\n" +
			"KEY is a file, plain or sealed with a passphrase, credential:NAME (systemd) or exec:PROGRAM (a key store).\n" +
			"'rotate' and 'check' work on the store of the vault whose data directory holds the key file or is the\n" +
			"current one; --data and --store name another."}
	cmd.AddCommand(a.newCommand(), a.sealCommand(), a.unsealCommand(), a.exportCommand(), a.combineCommand(), a.rotateCommand(), a.checkCommand())
	return cmd
}

// madeView is a file with a key that was made.
type madeView struct {
	KeyID string   `json:"keyId"`
	Vault string   `json:"vault,omitempty"`
	Files []string `json:"files"`
}

func (a *app) made(v madeView) error {
	return a.Describe(v, console.F("key id", v.KeyID), console.F("vault", v.Vault), console.F("files", strings.Join(v.Files, "\n")))
}

func (a *app) newCommand() *cobra.Command {
	var out string
	c := &cobra.Command{Use: "new --out FILE", Short: "Make a new key, for a rotation", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		key, err := cut.GenerateVaultKey()
		if err != nil {
			return err
		}
		if err := writeKey(out, key); err != nil {
			return err
		}
		if err := a.made(madeView{KeyID: key.KeyID().String(), Files: []string{out}}); err != nil {
			return err
		}
		a.Say("\nMake copies of it now, and keep them away from the store:\nsee 'holdfast vault key export'.")
		return nil
	}}
	c.Flags().StringVar(&out, "out", "", "new file for the key")
	console.Required(c, "out")
	return c
}

func writeKey(path string, key cut.VaultPrivateKey) error {
	text, err := key.Text()
	if err != nil {
		return err
	}
	return keyfile.WriteNew(path, []byte(text))
}

// newPassphrase takes a passphrase for something new; a person types it twice.
func (a *app) newPassphrase(ctx context.Context, from string) (keyfile.Secret, error) {
	pass, err := storage.Passphrase(a.Console, from)
	if err != nil {
		return keyfile.Secret{}, err
	}
	first, err := pass(ctx, "New passphrase (12 bytes or more): ")
	if err != nil || from != "" && from != "prompt" {
		return first, err
	}
	again, err := pass(ctx, "The same again: ")
	if err != nil {
		first.Wipe()
		return keyfile.Secret{}, err
	}
	defer again.Wipe()
	if !bytes.Equal(first.Bytes(), again.Bytes()) {
		first.Wipe()
		return keyfile.Secret{}, console.Usage("the two passphrases differ; nothing was written")
	}
	return first, nil
}

// nameOf finds the vault's name for people who find a sheet in a safe.
func (a *app) nameOf(given, source string) string {
	if given != "" {
		return given
	}
	if text, err := os.ReadFile(source); err == nil {
		if info, err := keyfile.Inspect(text); err == nil {
			return info.Vault
		}
	}
	if name, _, err := a.vault.Config(filepath.Dir(source)); err == nil {
		return name
	}
	return ""
}

// copyFlags are of commands that write the key in another form.
type copyFlags struct {
	key       storage.KeyFlags // From is the passphrase of what is written
	keyFrom   string           // of what is read
	out, name string
}

func (f *copyFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.key.Source, "key", "", "the vault's private key: a file or credential:NAME")
	c.Flags().StringVar(&f.key.From, "passphrase-from", "", "where the new passphrase is: prompt, file:PATH, env:NAME or credential:NAME")
	c.Flags().StringVar(&f.keyFrom, "key-passphrase-from", "", "the same of --key, if that is sealed")
	c.Flags().StringVar(&f.name, "vault", "", "name of the vault to write beside the key, for people (default: the vault's)")
}

func (f *copyFlags) load(ctx context.Context, c *console.Console) (cut.VaultPrivateKey, error) {
	return (&storage.KeyFlags{Source: f.key.Source, From: f.keyFrom}).Load(ctx, c)
}

// seal writes the key sealed with a new passphrase.
func (a *app) seal(ctx context.Context, f *copyFlags, paper bool) error {
	key, err := f.load(ctx, a.Console)
	if err != nil {
		return err
	}
	name := a.nameOf(f.name, f.key.Source)
	pass, err := a.newPassphrase(ctx, f.key.From)
	if err != nil {
		return err
	}
	defer pass.Wipe()
	text, err := keyfile.Seal(key, pass, keyfile.SealConfig{Vault: name, Paper: paper})
	if err != nil {
		return err
	}
	if err := keyfile.WriteNew(f.out, text); err != nil {
		return err
	}
	return a.made(madeView{KeyID: key.KeyID().String(), Vault: name, Files: []string{f.out}})
}

func (a *app) sealCommand() *cobra.Command {
	var f copyFlags
	c := &cobra.Command{Use: "seal --key KEY --out FILE", Short: "Write the key sealed with a passphrase", Args: cobra.NoArgs,
		Long: "Write the key to a new file, sealed with a passphrase. The file that was read stays: delete it yourself.",
		RunE: func(c *cobra.Command, _ []string) error { return a.seal(c.Context(), &f, false) }}
	f.add(c)
	c.Flags().StringVar(&f.out, "out", "", "new file for the sealed key")
	console.Required(c, "key", "out")
	return c
}

func (a *app) unsealCommand() *cobra.Command {
	var key storage.KeyFlags
	var out string
	c := &cobra.Command{Use: "unseal --key KEY --out FILE", Short: "Write a sealed key without its passphrase", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		k, err := key.Load(c.Context(), a.Console)
		if err != nil {
			return err
		}
		if err := writeKey(out, k); err != nil {
			return err
		}
		return a.made(madeView{KeyID: k.KeyID().String(), Files: []string{out}})
	}}
	key.Add(c, "the sealed key")
	c.Flags().StringVar(&out, "out", "", "new file for the plain key")
	console.Required(c, "key", "out")
	return c
}

func (a *app) exportCommand() *cobra.Command {
	var f copyFlags
	var dir string
	var shares, threshold int
	c := &cobra.Command{Use: "export --key KEY (--out FILE | --shares N --threshold K --out-dir DIR)", Short: "Write copies of the key for paper in a safe", Args: cobra.NoArgs,
		Long: "Write a copy of the key for one sheet of paper, sealed with a passphrase of its own (--out), or shares of\n" +
			"which some together give the key and fewer tell nothing (--shares, --threshold, --out-dir).",
		RunE: func(c *cobra.Command, _ []string) error {
			if (f.out == "") == (dir == "") {
				return console.Usage("give either --out, for one sheet, or --shares, --threshold and --out-dir").WithHint("See '%s --help'.", c.CommandPath())
			}
			if f.out != "" {
				if shares != 0 || threshold != 0 {
					return console.Usage("--shares and --threshold go with --out-dir")
				}
				return a.seal(c.Context(), &f, true)
			}
			return a.split(c.Context(), &f, dir, shares, threshold)
		}}
	f.add(c)
	c.Flags().StringVar(&f.out, "out", "", "new file for one sheet")
	c.Flags().IntVar(&shares, "shares", 0, "how many shares are made")
	c.Flags().IntVar(&threshold, "threshold", 0, "how many of them give the key")
	c.Flags().StringVar(&dir, "out-dir", "", "directory for the shares, made if it is missing")
	console.Required(c, "key")
	return c
}

func (a *app) split(ctx context.Context, f *copyFlags, dir string, n, k int) error {
	key, err := f.load(ctx, a.Console)
	if err != nil {
		return err
	}
	name := a.nameOf(f.name, f.key.Source)
	parts, err := keyfile.Split(key, name, n, k)
	if err != nil {
		return err
	}
	defer func() {
		for _, p := range parts {
			p.Wipe()
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return console.ClassifyAs(err, "make the directory "+dir)
	}
	v := madeView{KeyID: key.KeyID().String(), Vault: name}
	for _, p := range parts { // all or none: a second export beside a first one would be mixed up
		path := filepath.Join(dir, fmt.Sprintf("share%d.txt", p.Number))
		if _, err := os.Lstat(path); err == nil {
			return dr.New(dr.KindConflict, dr.CodeAlreadyExists, "vault.key", "%s exists already; nothing was written", path).WithHint("Choose another directory: shares of two exports can't be mixed.")
		}
		v.Files = append(v.Files, path)
	}
	for i, p := range parts {
		text, err := p.Text()
		if err != nil {
			return err
		}
		if err := keyfile.WriteNew(v.Files[i], text); err != nil {
			return err
		}
	}
	if err := a.made(v); err != nil {
		return err
	}
	a.Say("\nPrint the files, give each to another person or place, and delete them.\nAny %d of %d give the key.", k, n)
	return nil
}

func (a *app) combineCommand() *cobra.Command {
	var out string
	c := &cobra.Command{Use: "combine --out FILE SHARE...", Short: "Get the key back from shares", Args: cobra.MinimumNArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		var parts []keyfile.Share
		defer func() {
			for _, p := range parts {
				p.Wipe()
			}
		}()
		for _, path := range args {
			text, err := console.ReadSmall(path)
			if err != nil {
				return console.ClassifyAs(err, "read the share "+path)
			}
			p, err := keyfile.ParseShare(text)
			clear(text)
			if err != nil {
				return dr.New(dr.KindOf(err), dr.CodeOf(err), "vault.key", "%s: %w", path, err).WithHint("%s", dr.HintOf(err))
			}
			parts = append(parts, p)
		}
		key, err := keyfile.Combine(parts)
		if err != nil {
			return err
		}
		if err := writeKey(out, key); err != nil {
			return err
		}
		return a.made(madeView{KeyID: key.KeyID().String(), Vault: parts[0].Vault, Files: []string{out}})
	}}
	c.Flags().StringVar(&out, "out", "", "new file for the key")
	console.Required(c, "out")
	return c
}

// place finds the store to work on, and the data directory of its vault if it is known.
func (a *app) place(store, data string, sources ...string) (at storage.Address, dir string, err error) {
	if data != "" {
		_, at, err = a.vault.Config(data)
		if err != nil {
			return at, "", err
		}
		dir = data
	}
	if store = cmp.Or(store, os.Getenv(storage.StoreVariable)); store != "" {
		at, err = storage.Parse(store, ".")
		return at, dir, err
	}
	if dir != "" {
		return at, dir, nil
	}
	for _, source := range append(sources, "./.") {
		if strings.HasPrefix(source, "exec:") || strings.HasPrefix(source, "credential:") {
			continue
		}
		_, at, err := a.vault.Config(filepath.Dir(source))
		if err == nil {
			return at, filepath.Dir(source), nil
		}
		if dr.KindOf(err) != dr.KindNotFound {
			return at, "", err
		}
	}
	return at, "", console.Usage("it is not said which store to work on").
		WithHint("Give --store, or --data with the vault's data directory, or run the command there.")
}
