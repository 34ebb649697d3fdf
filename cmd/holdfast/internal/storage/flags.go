package storage

import (
	"cmp"
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/cut"
	"holdfast/internal/keyfile"
	"holdfast/internal/store"
)

// KeyFlags say where a private key is.
type KeyFlags struct{ Source, From string }

// Add adds --key and --passphrase-from.
func (k *KeyFlags) Add(c *cobra.Command, what string) {
	c.Flags().StringVar(&k.Source, "key", "", what+": a file, credential:NAME or exec:PROGRAM")
	c.Flags().StringVar(&k.From, "passphrase-from", "", PassphraseHelp)
}

// PassphraseHelp explains the values of --passphrase-from.
const PassphraseHelp = "where the passphrase of a sealed key is: prompt, file:PATH, env:NAME or credential:NAME"

// Passphrase finds the passphrase that a flag tells of.
func Passphrase(c *console.Console, from string) (keyfile.Passphrase, error) {
	prompt := keyfile.Prompt(c.Secret)
	return keyfile.ParsePassphrase(from, prompt)
}

// Open opens the key, also one that another program keeps.
func (k *KeyFlags) Open(ctx context.Context, c *console.Console) (cut.KeyOpener, error) {
	pass, err := Passphrase(c, k.From)
	if err != nil {
		return nil, err
	}
	return keyfile.Open(ctx, k.Source, keyfile.Options{Passphrase: pass})
}

// Load opens a key that is at hand itself.
func (k *KeyFlags) Load(ctx context.Context, c *console.Console) (cut.VaultPrivateKey, error) {
	pass, err := Passphrase(c, k.From)
	if err != nil {
		return cut.VaultPrivateKey{}, err
	}
	return keyfile.Load(ctx, k.Source, keyfile.Options{Passphrase: pass})
}

// Flags name a store and the key that opens it.
type Flags struct {
	Key     KeyFlags
	address string
}

// Add adds --store, --key and --passphrase-from; store and key are required.
func (f *Flags) Add(c *cobra.Command) {
	c.Flags().StringVar(&f.address, "store", "", "store: "+Forms)
	f.Key.Add(c, "the vault's private key")
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		f.address, f.Key.Source = cmp.Or(f.address, os.Getenv(StoreVariable)), cmp.Or(f.Key.Source, os.Getenv(KeyVariable))
		for _, x := range [][2]string{{"store", f.address}, {"key", f.Key.Source}} {
			if x[1] == "" {
				return console.Usage("--%s is missing", x[0]).WithHint("See '%s --help'.", c.CommandPath())
			}
		}
		return run(c, args)
	}
}

// Variables of the environment that stand for --store and --key.
const (
	StoreVariable = "HOLDFAST_STORE"
	KeyVariable   = "HOLDFAST_KEY"
)

// Opened is a store that was opened with its key.
type Opened struct {
	Address Address
	Bucket  Bucket
	Key     cut.KeyOpener
	Keys    cut.Keyring
	Store   *store.Store
	Vault   cut.VaultInfo // zero if the store has lost its description
}

// Close closes the bucket.
func (o *Opened) Close() error { return o.Bucket.Close() }

// Open opens the store and checks that the key is its key.
func (f *Flags) Open(ctx context.Context, c *console.Console, mode Mode) (_ *Opened, err error) {
	o := &Opened{}
	if o.Address, err = Parse(f.address, "."); err != nil {
		return nil, err
	}
	if o.Key, err = f.Key.Open(ctx, c); err != nil {
		return nil, err
	}
	if o.Bucket, err = o.Address.Open(ctx, mode); err != nil {
		return nil, err
	}
	o.Store, o.Keys = o.Address.Store(o.Bucket, o.Key)
	if o.Vault, err = CheckKey(ctx, o.Store, o.Key, f.Key.Source); err != nil {
		return nil, errors.Join(err, o.Bucket.Close())
	}
	return o, nil
}
