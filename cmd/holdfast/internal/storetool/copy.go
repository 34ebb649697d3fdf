package storetool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/storage"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
)

func (a *app) copyCommand() *cobra.Command {
	var from, to string
	var parallel int
	var reread bool
	c := &cobra.Command{Use: "copy --from STORE --to STORE", Short: "Copy what a store has to another one", Args: cobra.NoArgs,
		Long: "Copy every object that the other store does not have. Each is written once with its SHA-256, which the\n" +
			"other store checks; nothing is replaced. Stopped or killed, it goes on when it is run again. A vault may\n" +
			"go on working on the first store meanwhile: run the command again to bring over what was added.\n\n" +
			"No key is needed: what is copied stays encrypted. Objects that the first store has deleted stay in the\n" +
			"copy, where maintenance removes them later.\n\nA STORE is a " + storage.Forms + ".",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if parallel < 1 || parallel > 128 {
				return console.Usage("--parallel must be 1 to 128")
			}
			src, err := storage.Parse(from, ".")
			if err != nil {
				return err
			}
			dst, err := storage.Parse(to, ".")
			if err != nil {
				return err
			}
			if src.String() == dst.String() {
				return console.Usage("--from and --to are the same store")
			}
			in, err := src.Open(c.Context(), storage.ReadOnly)
			if err != nil {
				return err
			}
			defer console.Closing(&err, in.Close)
			out, err := dst.Open(c.Context(), storage.Create)
			if err != nil {
				return err
			}
			defer console.Closing(&err, out.Close)
			cp := &copier{a: a, from: in, to: out, parallel: parallel, reread: reread}
			cp.v.From, cp.v.To = src.String(), dst.String()
			if err := cp.run(c.Context()); err != nil {
				return err
			}
			if err := a.Describe(cp.v, console.F("from", cp.v.From), console.F("to", cp.v.To),
				console.F("copied", fmt.Sprintf("%d objects, %s", cp.v.Copied, console.Bytes(cp.v.Bytes))),
				console.F("there already", fmt.Sprintf("%d objects, %s", cp.v.Present, console.Bytes(cp.v.PresentBytes))),
				console.F("deleted meanwhile", count(cp.v.Gone))); err != nil {
				return err
			}
			a.Say("\nThe copy is complete. To let the vault use it:\n  1. stop the vault\n  2. run this command once more, for what came last\n" +
				"  3. write the new address into \"store\" of the vault's config.json\n  4. start the vault: hosts send to the new store, and nothing is sent again")
			return nil
		}}
	f := c.Flags()
	f.StringVar(&from, "from", "", "store to copy from; it is only read")
	f.StringVar(&to, "to", "", "store to copy to; a new or empty directory becomes one")
	f.IntVar(&parallel, "parallel", 8, "objects at a time")
	f.BoolVar(&reread, "reread", false, "also read and compare every object that is there already")
	console.Required(c, "from", "to")
	return c
}

func count(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// copyView is what a copy has done.
type copyView struct {
	From         string `json:"from"`
	To           string `json:"to"`
	Copied       int    `json:"copiedObjects"`
	Bytes        int64  `json:"copiedBytes"`
	Present      int    `json:"presentObjects"` // were there already
	PresentBytes int64  `json:"presentBytes"`
	Gone         int    `json:"goneObjects"` // deleted in the first store meanwhile
	Passes       int    `json:"passes"`
}

// copier copies what is missing, in an order that never makes the copy look
// better than it is: a cut after all that it may refer to, and the description of
// the vault last.
type copier struct {
	a        *app
	from, to objstore.Bucket
	parallel int
	reread   bool

	mu    sync.Mutex
	v     copyView
	done  int64
	total int64
}

// maxPasses bounds how often a copy follows a store that grows.
const maxPasses = 5

func (c *copier) run(ctx context.Context) error {
	if err := c.sameVault(ctx); err != nil {
		return err
	}
	for {
		c.v.Passes++
		did := c.v.Copied
		if err := c.pass(ctx); err != nil {
			return err
		}
		if c.v.Copied == did || c.v.Passes == maxPasses {
			return nil
		}
		c.reread = false // what this run has written was checked then
	}
}

// sameVault refuses to mix two vaults' replicas.
func (c *copier) sameVault(ctx context.Context) error {
	src, err := objstore.ReadAll(ctx, c.from, cut.VaultObject(), 1<<20)
	if errors.Is(err, objstore.ErrNotExist) {
		return dr.New(dr.KindNotFound, dr.CodeNotFound, "store.copy", "%s has no %s: it is not a vault's store, or an empty one", c.v.From, cut.VaultObject())
	}
	if err != nil {
		return err
	}
	dst, err := objstore.ReadAll(ctx, c.to, cut.VaultObject(), 1<<20)
	if errors.Is(err, objstore.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if string(src) != string(dst) {
		return dr.New(dr.KindConflict, dr.CodeObjectConflict, "store.copy", "%s belongs to another vault", c.v.To).WithHint("Choose an empty place for the copy.")
	}
	return nil
}

// rank orders classes: what refers comes after what is referred to.
func rank(key string) int {
	o, err := cut.ParseObject(key)
	if err != nil {
		return 2 // a later format's
	}
	switch o.Class {
	case cut.ClassKey:
		return 0
	case cut.ClassGeneration:
		return 1
	case cut.ClassCut:
		return 3
	case cut.ClassRun, cut.ClassMap:
		return 4
	case cut.ClassManifest, cut.ClassLease:
		return 5
	case cut.ClassVault, cut.ClassVaultKey:
		return 6
	}
	return 2
}

const lastRank = 6

// foreign reports whether a key is not part of what a vault has stored.
func foreign(key string) bool {
	return !strings.HasPrefix(key, "v")
}

func (c *copier) list(ctx context.Context, b objstore.Bucket) (map[string]objstore.Info, error) {
	all := map[string]objstore.Info{}
	err := b.List(ctx, "", func(i objstore.Info) error {
		if !foreign(i.Key) && !strings.HasPrefix(i.Key, "validate/") {
			all[i.Key] = i
		}
		return nil
	})
	return all, err
}

func (c *copier) pass(ctx context.Context) error {
	// The copy is listed first: what is added to the source meanwhile is found missing.
	have, err := c.list(ctx, c.to)
	if err != nil {
		return err
	}
	want, err := c.list(ctx, c.from)
	if err != nil {
		return err
	}
	groups := make([][]objstore.Info, lastRank+1)
	c.total, c.done = 0, 0
	for key, i := range want {
		h, there := have[key]
		if there && h.Size != i.Size {
			return conflict(key, fmt.Sprintf("%d bytes, want %d", h.Size, i.Size))
		}
		if there && !c.reread {
			continue
		}
		groups[rank(key)] = append(groups[rank(key)], i)
		c.total += i.Size
	}
	if c.v.Passes == 1 {
		for key, i := range want {
			if _, there := have[key]; there {
				c.v.Present++
				c.v.PresentBytes += i.Size
			}
		}
	}
	meter := c.a.Meter("copy")
	defer meter.End()
	for _, group := range groups {
		slices.SortFunc(group, func(a, b objstore.Info) int { return cmp.Compare(a.Key, b.Key) })
		eg, ectx := errgroup.WithContext(ctx)
		eg.SetLimit(c.parallel)
		for _, i := range group {
			if ectx.Err() != nil {
				break
			}
			eg.Go(func() error {
				var err error
				if _, there := have[i.Key]; there {
					err = c.compare(ectx, i)
				} else {
					err = c.object(ectx, i)
				}
				if err != nil {
					return err
				}
				c.mu.Lock()
				defer c.mu.Unlock()
				c.done += i.Size
				meter.Update(c.done, c.total)
				return nil
			})
		}
		if err := errors.Join(eg.Wait(), ctx.Err()); err != nil {
			return err
		}
	}
	return nil
}

func conflict(key, what string) error {
	return dr.New(dr.KindConflict, dr.CodeObjectConflict, "store.copy", "object %s is in the copy already, and is another one (%s)", key, what).
		WithHint("One of the stores is damaged: verify both with 'holdfast store verify'. Nothing is replaced; copy into an empty place.")
}

// object copies one object and proves the copy.
func (c *copier) object(ctx context.Context, i objstore.Info) error {
	info, err := objstore.Digest(ctx, c.from, i.Key)
	if errors.Is(err, objstore.ErrNotExist) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.v.Gone++
		return nil
	}
	if err != nil {
		return err
	}
	body, err := c.from.Get(ctx, i.Key, 0, -1)
	if errors.Is(err, objstore.ErrNotExist) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.v.Gone++
		return nil
	}
	if err != nil {
		return err
	}
	err = c.to.PutNew(ctx, i.Key, body, info.Size, &info.SHA256)
	if err = errors.Join(err, body.Close()); errors.Is(err, objstore.ErrExists) {
		return c.compare(ctx, i) // another copy is at work, or an answer was lost
	}
	if err != nil {
		return err
	}
	there, err := c.to.Head(ctx, i.Key)
	if err != nil {
		return err
	}
	if there.Size != info.Size || there.SHA256 != [32]byte{} && there.SHA256 != info.SHA256 {
		return dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "store.copy", "object %s was written and is not what was written", i.Key).
			WithHint("Don't use this store: see 'holdfast store validate'.")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.v.Copied++
	c.v.Bytes += info.Size
	return nil
}

// compare proves that both stores have the same object.
func (c *copier) compare(ctx context.Context, i objstore.Info) error {
	a, err := objstore.Digest(ctx, c.from, i.Key)
	if errors.Is(err, objstore.ErrNotExist) {
		return nil // deleted meanwhile
	}
	if err != nil {
		return err
	}
	b, err := objstore.Digest(ctx, c.to, i.Key)
	if err != nil {
		return err
	}
	if a.Size != b.Size || a.SHA256 != b.SHA256 {
		return conflict(i.Key, "another SHA-256")
	}
	return nil
}
