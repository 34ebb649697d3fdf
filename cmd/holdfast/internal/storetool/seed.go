package storetool

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/storage"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/seed"
	"holdfast/internal/store"
)

// seedOptions are the flags of 'store seed'.
type seedOptions struct {
	store, vm, state, keyID string
	key                     storage.KeyFlags
	disks                   []string
	parallel                int
}

func (a *app) seedCommand() *cobra.Command {
	var o seedOptions
	c := &cobra.Command{Use: "seed --store STORE --vm NAME --disk vda=IMAGE", Short: "Begin a VM's replica with images that are at hand", Args: cobra.NoArgs,
		Long: "Put images of a VM's disks (a backup, an older copy, a disk that came by post) into the store as the\n" +
			"beginning of its replica. The first replication then compares the VM with them and sends what differs.\n" +
			"A seed is never a recovery point. Stopped or killed, it goes on when it is run again.\n\n" +
			"IMAGE is raw, qcow2, vhd or vhdx, by its name's ending or written before it: vda=qcow2:/path. Disks are\n" +
			"named as the hypervisor names the VM's disks ('holdfast vm list -o json').\n\n" +
			"The data is sealed to the public key in the store, which proves nothing by itself: give the vault's key id,\n" +
			"as 'vault init' printed it, with --vault-key-id, or a copy of the private key with --key.",
		RunE: func(c *cobra.Command, _ []string) error { return a.seed(c.Context(), o) }}
	f := c.Flags()
	f.StringVar(&o.store, "store", "", "store: "+storage.Forms)
	f.StringVar(&o.vm, "vm", "", "name of the VM")
	f.StringArrayVar(&o.disks, "disk", nil, "a disk and its image, vda=IMAGE; repeat it for each disk, in the VM's order")
	f.StringVar(&o.keyID, "vault-key-id", "", "id of the vault's key, 32 hexadecimal digits")
	o.key.Add(c, "the vault's private key, instead of its id")
	f.StringVar(&o.state, "state", "", "directory for what is needed to go on later (default: in the user's cache)")
	f.IntVar(&o.parallel, "parallel", 2, "tiles of 64 MiB at a time")
	console.Required(c, "store", "vm", "disk")
	return c
}

func (a *app) seed(ctx context.Context, o seedOptions) (err error) {
	if (o.keyID == "") == (o.key.Source == "") {
		return console.Usage("give either --vault-key-id or --key").WithHint("'holdfast vault init' printed the key id; 'holdfast vault key check' shows it too.")
	}
	var disks []seed.Disk
	for _, text := range o.disks {
		d, err := seed.ParseDisk(text)
		if err != nil {
			return err
		}
		disks = append(disks, d)
	}
	at, err := storage.Parse(o.store, ".")
	if err != nil {
		return err
	}
	want, err := a.vaultKeyID(ctx, o)
	if err != nil {
		return err
	}
	b, err := at.Open(ctx, storage.Write)
	if err != nil {
		return err
	}
	defer console.Closing(&err, b.Close)
	info, err := store.New(store.Config{Bucket: b}).VaultInfo(ctx)
	if err != nil {
		return err
	}
	if info.KeyID != want {
		return dr.New(dr.KindForbidden, dr.CodeKeyMismatch, "store.seed", "the store belongs to the vault %q with the key %s, not to %s", info.Name, info.KeyID, want).
			WithHint("See whether this is the right store, and whether the vault's key was rotated.")
	}
	public, err := info.Key()
	if err != nil {
		return err
	}
	if o.state == "" {
		if o.state, err = stateDir(at.String(), o); err != nil {
			return err
		}
	}
	meter := a.Meter("seed " + o.vm)
	r, err := seed.Make(ctx, seed.Config{Bucket: b, VaultKey: public, Dir: o.state, VM: o.vm, Disks: disks, Parallel: o.parallel, Progress: meter.Update})
	meter.End()
	if err != nil {
		if ctx.Err() != nil {
			return dr.Errorf(dr.KindCanceled, "store.seed", "stopped; what is stored stays").WithHint("Run the same command again to go on.")
		}
		return console.Classify(err)
	}
	type diskView struct {
		Disk string `json:"disk"`
		Size int64  `json:"sizeBytes"`
	}
	v := struct {
		Machine string     `json:"machine"`
		VM      string     `json:"vm"`
		Disks   []diskView `json:"disks"`
		Tiles   int        `json:"tiles"`
		Stored  int64      `json:"storedBytes"`
		Resumed bool       `json:"resumed"`
	}{string(r.Machine), o.vm, []diskView{}, r.Tiles, r.Stored, r.Resumed}
	var names []string
	for _, d := range r.Disks {
		v.Disks = append(v.Disks, diskView{d.ID, d.Size})
		names = append(names, fmt.Sprintf("%s %s", d.ID, console.Bytes(d.Size)))
	}
	err = a.Describe(v, console.F("machine", v.Machine), console.F("vm", v.VM), console.F("disks", strings.Join(names, ", ")), console.F("stored", console.Bytes(v.Stored)))
	a.Say("\nThe seed is complete. Now let the vault use it:\n  holdfast item enable %s --seed %s", o.vm, v.Machine)
	return err
}

// vaultKeyID is the key that the operator says the vault has.
func (a *app) vaultKeyID(ctx context.Context, o seedOptions) (id cut.KeyID, err error) {
	if o.keyID != "" {
		if err := id.UnmarshalText([]byte(strings.ToLower(o.keyID))); err != nil {
			return id, console.Usage("--vault-key-id %q is not 32 hexadecimal digits", o.keyID)
		}
		return id, nil
	}
	key, err := o.key.Open(ctx, a.Console)
	if err != nil {
		return id, err
	}
	return key.ID(), nil
}

// stateDir is the same for the same seed.
func stateDir(at string, o seedOptions) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", console.Usage("there is no directory for the user's cache: %v", err).WithHint("Give one with --state.")
	}
	sum := sha256.Sum256([]byte(strings.Join(append([]string{at, o.vm}, o.disks...), "\x00")))
	return filepath.Join(cache, "holdfast", "seed", fileName(cmp.Or(o.vm, "vm"))+"-"+hex.EncodeToString(sum[:6])), nil
}
