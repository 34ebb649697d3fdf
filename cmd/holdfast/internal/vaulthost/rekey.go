package vaulthost

import (
	"context"
	"database/sql"
	"log/slog"
	"path/filepath"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/keytool"
	"holdfast/cmd/holdfast/internal/storage"
	"holdfast/internal/authn"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/vaultdb"
)

// keyVault is what 'vault key' has to know of a data directory.
func keyVault() keytool.Vault {
	return keytool.Vault{
		Config: func(dir string) (string, storage.Address, error) {
			cfg, err := loadConfig(dir)
			if err != nil {
				return "", storage.Address{}, err
			}
			at, err := cfg.store(dir)
			return cfg.Name, at, err
		},
		Switch: switchKey,
	}
}

// The vault's secrets in its database, as package vault/identity seals them.
const (
	secretCA      = "ca"
	sealedSecrets = "database secrets"
)

// switchKey gives a vault that is not running another key. Each of its two writes
// may be the last before a crash: a second call finds out.
func switchKey(ctx context.Context, dir string, old, next cut.VaultPrivateKey, to storage.KeyFlags) (err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return console.Usage("--data: %v", err)
	}
	cfg, err := loadConfig(dir)
	if err != nil {
		return err
	}
	source, err := keytool.Absolute(to.Source)
	if err != nil {
		return console.Usage("--to: %v", err)
	}
	db, err := openDatabase(ctx, dir, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer console.Closing(&err, db.Close)
	oldKey, err := secretsKey(old)
	if err != nil {
		return err
	}
	nextKey, err := secretsKey(next)
	if err != nil {
		return err
	}
	err = db.Tx(ctx, func(tx *sql.Tx) error { return reseal(ctx, tx, oldKey, nextKey) })
	if err != nil {
		return err
	}
	cfg.Key, cfg.PassphraseFrom = source, to.From
	return saveConfig(dir, cfg)
}

func secretsKey(key cut.VaultPrivateKey) ([32]byte, error) {
	text, err := key.Text()
	if err != nil {
		return [32]byte{}, err
	}
	return authn.DeriveKey(text, sealedSecrets)
}

// reseal seals the vault's authority to the next key, if it is not already.
func reseal(ctx context.Context, tx *sql.Tx, old, next [32]byte) error {
	sealed, err := vaultdb.Setting(ctx, tx, secretCA)
	if err != nil || sealed == "" {
		return err
	}
	text, err := authn.Unseal(old, secretCA, sealed)
	if err != nil {
		if _, again := authn.Unseal(next, secretCA, sealed); again == nil {
			return nil // an earlier call came this far
		}
		return dr.New(dr.KindForbidden, dr.CodeKeyMismatch, "vault.key", "the vault's secrets in its database are sealed to a third key: %w", err).
			WithHint("Give the key that the vault runs with now as --key.")
	}
	if sealed, err = authn.Seal(next, secretCA, text); err != nil {
		return err
	}
	return vaultdb.SetSetting(ctx, tx, secretCA, sealed)
}
