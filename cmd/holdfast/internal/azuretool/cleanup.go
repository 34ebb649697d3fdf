package azuretool

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/azure/arm/doctor"
)

// The results of a leftover.
const (
	found   = "found"
	inUse   = "may be in use"
	removed = "removed"
	failed  = "failed"
)

// left is one line of 'holdfast azure cleanup'.
type left struct {
	doctor.Leftover
	Result  string `json:"result"` // one of the results
	Problem string `json:"problem,omitempty"`
	chosen  bool
}

func (a *app) cleanupCommand() *cobra.Command {
	owner := ""
	c := &cobra.Command{
		Use: "cleanup --config FILE", Short: "Remove what doctors and test failovers left in the resource group", Args: cobra.NoArgs,
		Long: "List what doctors and test failovers made and did not remove, for example because the machine they ran on was lost.\n" +
			"With --yes, what is over by its tags is removed. A test whose tags do not say when it ends is removed only if its owner\n" +
			"is named with --owner: make sure that nobody works with it. VMs of real failovers are never touched.",
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), cleanupTime)
			defer cancel()
			return a.cleanup(ctx, owner)
		},
	}
	c.Flags().StringVar(&owner, "owner", "", "remove the tests of this owner (tag "+arm.TagOwner+"), over or not")
	return a.ConfirmFlag(c)
}

func (a *app) cleanup(ctx context.Context, owner string) (err error) {
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer console.Closing(&err, s.Close)
	list, err := doctor.Leftovers(ctx, s, a.Now())
	if err != nil {
		return err
	}
	rows, n := []left{}, 0
	for _, l := range list {
		r := left{Leftover: l, Result: inUse, chosen: l.Over || owner != "" && l.Owner == owner}
		if r.chosen {
			r.Result = found
			n++
		}
		rows = append(rows, r)
	}
	remove := a.Yes
	if n > 0 && !a.Yes && a.Ask {
		if err := a.print(rows); err != nil {
			return err
		}
		if err := a.Confirm("%d resources in %s will be deleted.", n, s.Config().ResourceGroup); err != nil {
			return err
		}
		remove = true
	}
	if !remove {
		if err := a.print(rows); err != nil {
			return err
		}
		if n > 0 {
			a.Say("%d resources can be removed: repeat the command with --yes.", n)
		}
		return nil
	}
	return a.remove(ctx, s, rows)
}

// remove deletes what was chosen, in the order of the list, and tells how it went.
func (a *app) remove(ctx context.Context, s *arm.Session, rows []left) error {
	var errs []error
	for i := range rows {
		r := &rows[i]
		if !r.chosen {
			continue
		}
		if err := s.Remove(ctx, []arm.Resource{r.Resource}); err != nil {
			r.Result, r.Problem = failed, err.Error()
			errs = append(errs, err)
			continue
		}
		r.Result = removed
	}
	blobs, err := doctor.RemoveBlobs(ctx, s, a.Now())
	if err != nil {
		errs = append(errs, err)
	} else if blobs > 0 {
		a.Say("%d blobs of doctors were removed.", blobs)
	}
	if err := a.print(rows); err != nil {
		return err
	}
	if len(errs) == 1 {
		return errs[0]
	}
	if len(errs) > 1 {
		var first *dr.Error
		kind := dr.KindInternal
		if errors.As(errs[0], &first) {
			kind = first.Kind
		}
		return dr.New(kind, dr.CodeOf(errs[0]), "azure.cleanup", "%d things could not be removed, first: %w", len(errs), errs[0])
	}
	return nil
}

func (a *app) print(rows []left) error {
	return console.List(a.Console, rows, "Nothing is left of doctors and tests.",
		console.Wide("RESOURCE", func(r left) string { return r.Name }),
		console.Wide("TYPE", func(r left) string { return r.Type }),
		console.Col("PURPOSE", func(r left) string { return r.Purpose }),
		console.Wide("OWNER", func(r left) string { return r.Owner }),
		console.Col("OVER", func(r left) string {
			switch {
			case r.Over:
				return "yes"
			case r.Until.IsZero():
				return "unknown"
			}
			return "no"
		}),
		console.Wide("RESULT", func(r left) string {
			if r.Problem != "" {
				return r.Problem
			}
			return r.Result
		}))
}
