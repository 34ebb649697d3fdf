package keytool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/storage"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/keyfile/rotation"
	"holdfast/internal/objstore"
	"holdfast/internal/store"
)

// rotateOptions are the flags of 'vault key rotate'.
type rotateOptions struct {
	store, data     string
	key, to         storage.KeyFlags
	keep, acceptOld bool
}

func (a *app) rotateCommand() *cobra.Command {
	var o rotateOptions
	c := &cobra.Command{Use: "rotate --key KEY --to KEY", Short: "Make another key the vault's, or give a second key the same power", Args: cobra.NoArgs,
		Long: "Seal every data key in the store to another vault key too, then name that key in the store's description.\n" +
			"Nothing is replaced or deleted: the old key opens afterwards what it opened before. Stopped at any moment,\n" +
			"run it again. The vault may run meanwhile.\n\n" +
			"With --data DIR the vault there, which must be stopped, is given the new key too: its own secrets in the\n" +
			"database are sealed to it and config.json names it. With --keep-key the vault keeps its key.",
		RunE: func(c *cobra.Command, _ []string) error { return a.rotate(c.Context(), o) }}
	f := c.Flags()
	o.key.Add(c, "the vault's private key")
	f.StringVar(&o.to.Source, "to", "", "the new key: a file, credential:NAME or exec:PROGRAM")
	f.StringVar(&o.to.From, "to-passphrase-from", "", storage.PassphraseHelp+" (of --to)")
	f.StringVar(&o.store, "store", "", "store: "+storage.Forms)
	f.StringVar(&o.data, "data", "", "data directory of the vault that is given the new key; it must be stopped")
	f.BoolVar(&o.keep, "keep-key", false, "only give the other key the power to open everything up to now")
	f.BoolVar(&o.acceptOld, "accept-left", false, "change the key although some data keys can't be sealed to the new one")
	console.Required(c, "key", "to")
	return c
}

// rotatedView is what a rotation has done.
type rotatedView struct {
	From     string     `json:"from"`
	To       string     `json:"to"`
	Changed  bool       `json:"changed"` // the store's description names the new key
	Switched bool       `json:"switched"`
	Machines int        `json:"machines"`
	Sealed   int        `json:"sealed"`
	Present  int        `json:"present"` // were sealed to the new key already
	Left     []leftView `json:"left"`
}

type leftView struct {
	Machine string `json:"machine"`
	Epoch   uint32 `json:"epoch"`
	Object  string `json:"object"`
	Problem string `json:"problem"`
}

func problems(all []rotation.Problem) []leftView {
	out := []leftView{}
	for _, p := range all {
		out = append(out, leftView{string(p.Machine), p.Epoch, p.Object, p.Err.Error()})
	}
	return out
}

func (a *app) rotate(ctx context.Context, o rotateOptions) (err error) {
	if o.keep && o.data != "" {
		return console.Usage("--keep-key and --data exclude each other: the vault keeps its key")
	}
	at, dir, err := a.place(o.store, o.data, o.key.Source)
	if err != nil {
		return err
	}
	old, err := o.key.Open(ctx, a.Console)
	if err != nil {
		return err
	}
	next, err := o.to.Open(ctx, a.Console)
	if err != nil {
		return err
	}
	public, err := publicOf(next, o.to.Source)
	if err != nil {
		return err
	}
	b, err := at.Open(ctx, storage.Write)
	if err != nil {
		return err
	}
	defer console.Closing(&err, b.Close)
	last := a.Now()
	cfg := rotation.Config{Prove: next, AcceptLeft: o.acceptOld, Software: console.Version(), Progress: func(p rotation.Progress) {
		if now := a.Now(); now.Sub(last).Seconds() >= 5 {
			last = now
			a.Say("pass %d: %d of %d machines, %d data keys sealed, %d left", p.Pass, p.Done, p.Machines, p.Sealed, p.Left)
		}
	}}
	if _, here := old.(cut.VaultPrivateKey); !here { // a program's word is not enough
		cfg.Verify = func(ctx context.Context, m dr.MachineID, epoch uint32, key cut.EpochKey) error {
			return proveKey(ctx, b, m, epoch, key)
		}
	}
	work := rotation.Rotate
	if o.keep {
		work = rotation.Rewrap
	}
	r, err := work(ctx, b, old, public, cfg)
	if err != nil && dr.CodeOf(err) != dr.CodeKeysLeft {
		return console.Classify(err)
	}
	v := rotatedView{From: old.ID().String(), To: public.KeyID().String(), Changed: !o.keep && r.Changed(), Machines: r.Machines, Sealed: r.Sealed, Present: r.Present, Left: problems(r.Left)}
	if err == nil && o.data != "" {
		if err := a.switchVault(ctx, o, old, next); err != nil {
			return err
		}
		v.Switched = true
	}
	if perr := a.sayRotated(v); perr != nil {
		return perr
	}
	if err == nil {
		a.sayNext(o, v, dir)
	}
	return err
}

// proveKey reads segments of a machine until one that is sealed with the epoch's
// key proves it. An epoch without segments has nothing that could be lost.
func proveKey(ctx context.Context, b objstore.Reader, m dr.MachineID, epoch uint32, key cut.EpochKey) error {
	proved := errors.New("proved")
	err := b.List(ctx, cut.MachinePrefix(m), func(i objstore.Info) error {
		name, err := cut.ParseObject(i.Key)
		if err != nil || name.Class != cut.ClassCut && name.Class != cut.ClassTile {
			return nil
		}
		asked := false
		_, err = cut.Open(ctx, object{b, i}, name, keyFunc(func(_ context.Context, _ dr.MachineID, e uint32) (cut.EpochKey, error) {
			if asked = e == epoch; asked {
				return key, nil
			}
			return cut.EpochKey{}, dr.Errorf(dr.KindNotFound, "vault.key", "another epoch")
		}))
		switch {
		case asked && err == nil:
			return proved
		case asked && dr.CodeOf(err) == dr.CodeKeyMismatch:
			return err
		case dr.KindOf(err) == dr.KindUnavailable && err != nil:
			return err
		}
		return nil // another epoch's, or damaged: it proves nothing
	})
	if errors.Is(err, proved) {
		return nil
	}
	return err
}

type keyFunc func(context.Context, dr.MachineID, uint32) (cut.EpochKey, error)

// EpochKey implements cut.Keyring.
func (f keyFunc) EpochKey(ctx context.Context, m dr.MachineID, epoch uint32) (cut.EpochKey, error) {
	return f(ctx, m, epoch)
}

// object is cut.Source over an object of a store.
type object struct {
	b    objstore.Reader
	info objstore.Info
}

func (o object) Size() int64 { return o.info.Size }

func (o object) ReadRange(ctx context.Context, off, length int64) ([]byte, error) {
	body, err := o.b.Get(ctx, o.info.Key, off, length)
	if err != nil {
		return nil, store.ObjectError("vault.key", o.info.Key, err)
	}
	p := make([]byte, length)
	_, err = io.ReadFull(body, p)
	return p, store.ObjectError("vault.key", o.info.Key, errors.Join(err, body.Close()))
}

func publicOf(key cut.KeyOpener, source string) (cut.VaultPublicKey, error) {
	if k, ok := key.(interface{ Public() cut.VaultPublicKey }); ok && !k.Public().IsZero() {
		return k.Public(), nil
	}
	return cut.VaultPublicKey{}, dr.Errorf(dr.KindUnsupported, "vault.key", "the key store %.40s does not tell its public key, to which the data keys have to be sealed", source).
		WithHint("Let the program answer the operation \"id\" with publicKey.")
}

// switchVault gives a stopped vault the new key.
func (a *app) switchVault(ctx context.Context, o rotateOptions, old, next cut.KeyOpener) error {
	from, ok1 := old.(cut.VaultPrivateKey)
	to, ok2 := next.(cut.VaultPrivateKey)
	if !ok1 || !ok2 {
		return dr.Errorf(dr.KindUnsupported, "vault.key", "the store has the new key now, but a vault can't run with a key that another program keeps").
			WithHint("Give the keys themselves (files or credentials) with --data.")
	}
	if err := a.vault.Switch(ctx, o.data, from, to, o.to); err != nil {
		return dr.New(dr.KindOf(err), dr.CodeOf(err), "vault.key", "the store has the new key now, the vault in %s not yet: %w", o.data, err).
			WithHint("Stop the vault and run the same command again. %s", dr.HintOf(err))
	}
	return nil
}

func (a *app) sayRotated(v rotatedView) error {
	if a.JSON {
		return a.PrintJSON(v)
	}
	changed := "the vault keeps its key"
	if v.Changed {
		changed = "the store names the new key"
	}
	if v.Switched {
		changed += ", and so does the vault"
	}
	err := a.Describe(v, console.F("from", v.From), console.F("to", v.To), console.F("machines", fmt.Sprint(v.Machines)),
		console.F("data keys", fmt.Sprintf("%d sealed now, %d before, %d left", v.Sealed, v.Present, len(v.Left))), console.F("key", changed))
	if err != nil || len(v.Left) == 0 {
		return err
	}
	return a.listLeft(v.Left, "LEFT")
}

func (a *app) listLeft(left []leftView, head string) error {
	return console.List(a.Console, left, "", console.Wide(head, func(l leftView) string { return l.Object }), console.Wide("BECAUSE", func(l leftView) string { return l.Problem }))
}

// sayNext tells what a rotation needs to be complete.
func (a *app) sayNext(o rotateOptions, v rotatedView, dir string) {
	if o.keep {
		a.Say("\nWhat is written from now on is not sealed to the second key: repeat this now and then.")
		return
	}
	if dir == "" {
		dir = "DIR"
	}
	a.Say("\nNext:\n  holdfast vault key check --key %s        (must say: no problems)", o.to.Source)
	if !v.Switched {
		a.Say("  stop the vault, then let it use the new key, and start it:\n  holdfast vault key rotate --key %s --to %s --data %s", o.key.Source, o.to.Source, dir)
	}
	a.Say("  repeat the rotation until nothing is sealed anew: agents seal to the old key\n  until they have heard of the new one, a day at most. Keep the old key.")
}

func (a *app) checkCommand() *cobra.Command {
	var key storage.KeyFlags
	var address, data, machine string
	c := &cobra.Command{Use: "check --key KEY", Short: "Prove in a drill that a copy of the key opens everything", Args: cobra.NoArgs,
		Long: "Read every sealed data key of every machine and open each with the key given. Use a copy, not the key in\n" +
			"use: only that shows that the sheet in the safe is the right one. Nothing is written.",
		RunE: func(c *cobra.Command, _ []string) error { return a.check(c.Context(), key, address, data, machine) }}
	key.Add(c, "a copy of the vault's private key")
	c.Flags().StringVar(&address, "store", "", "store: "+storage.Forms)
	c.Flags().StringVar(&data, "data", "", "data directory of the vault whose store is checked")
	c.Flags().StringVar(&machine, "machine", "", "only this machine, by its id")
	console.Required(c, "key")
	return c
}

type checkView struct {
	Machine  string     `json:"machine"`
	KeyID    string     `json:"keyId"`
	OK       bool       `json:"ok"`
	Opened   int        `json:"opened"`
	Problems []leftView `json:"problems"`
}

func (a *app) check(ctx context.Context, flags storage.KeyFlags, address, data, machine string) (err error) {
	at, _, err := a.place(address, data, flags.Source)
	if err != nil {
		return err
	}
	key, err := flags.Open(ctx, a.Console)
	if err != nil {
		return err
	}
	b, err := at.Open(ctx, storage.ReadOnly)
	if err != nil {
		return err
	}
	defer console.Closing(&err, b.Close)
	st := store.New(store.Config{Bucket: b})
	ids, err := st.Machines(ctx)
	if err != nil {
		return err
	}
	var views []checkView
	var left []leftView
	var bad error
	opened := 0
	for _, id := range ids {
		if machine != "" && machine != string(id) {
			continue
		}
		r, err := rotation.Check(ctx, b, key, id)
		if err != nil && dr.KindOf(err) == dr.KindNotFound {
			views = append(views, checkView{Machine: string(id), KeyID: key.ID().String(), OK: true, Problems: []leftView{}}) // nothing was ever stored
			continue
		}
		if err != nil {
			return err
		}
		v := checkView{string(id), r.KeyID.String(), r.Err() == nil, len(r.Opened), problems(r.Problems)}
		views, left, opened = append(views, v), append(left, v.Problems...), opened+v.Opened
		if bad == nil {
			bad = r.Err()
		}
	}
	if machine != "" && len(views) == 0 {
		return dr.New(dr.KindNotFound, dr.CodeNotFound, "vault.key", "the store has no machine %q", machine).WithHint("See 'holdfast store ls'.")
	}
	if err := console.List(a.Console, views, "The store has no machines: there is nothing to open.", console.Col("MACHINE", func(v checkView) string { return v.Machine }),
		console.Col("OPENED", func(v checkView) string { return fmt.Sprint(v.Opened) }), console.Wide("RESULT", func(v checkView) string {
			if v.OK {
				return "no problems"
			}
			return fmt.Sprintf("%d PROBLEMS", len(v.Problems))
		})); err != nil {
		return err
	}
	if len(left) > 0 && !a.JSON {
		if err := a.listLeft(left, "NOT OPENED"); err != nil {
			return err
		}
	}
	info, err := st.VaultInfo(ctx)
	switch {
	case err != nil && dr.KindOf(err) != dr.KindNotFound && dr.KindOf(err) != dr.KindCorrupt:
		return err
	case err == nil && info.KeyID != key.ID():
		a.Say("The key %s is not the vault's own (any more).\nThat is %s.\nThis key won't open what is written from now on.", key.ID(), info.KeyID)
	case bad == nil:
		a.Say("The key %s opens everything:\n%d data keys of %d machines, no problems.", key.ID(), opened, len(views))
	}
	if bad != nil && len(views) > 1 {
		failed := []string{}
		for _, v := range views {
			if !v.OK {
				failed = append(failed, v.Machine)
			}
		}
		return dr.New(dr.KindOf(bad), dr.CodeOf(bad), "vault.key", "the key does not open everything of %s", strings.Join(failed, ", ")).WithHint("%s", dr.HintOf(bad))
	}
	return bad
}

// Absolute makes the name of a key independent of the current directory.
func Absolute(source string) (string, error) {
	if strings.HasPrefix(source, "exec:") || strings.HasPrefix(source, "credential:") {
		return source, nil
	}
	return filepath.Abs(source)
}
