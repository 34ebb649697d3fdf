package storetool

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/storage"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
)

func (a *app) validateCommand() *cobra.Command {
	var address string
	c := &cobra.Command{Use: "validate STORE", Short: "Check that a place keeps the promises that a store needs", Args: cobra.MaximumNArgs(1),
		Long: "Run the conformance checks of the object store contract, beside the content that is there. It writes\n" +
			"and deletes about 120 MiB. A directory must be a store already; 'holdfast vault init' makes one.\n\n" +
			"STORE is a " + storage.Forms + ".",
		RunE: func(c *cobra.Command, args []string) (err error) {
			if len(args) == 1 {
				if address != "" {
					return console.Usage("the store is given twice")
				}
				address = args[0]
			}
			if address == "" {
				return console.Usage("the store is missing").WithHint("See '%s --help'.", c.CommandPath())
			}
			at, err := storage.Parse(address, ".")
			if err != nil {
				return err
			}
			b, err := at.Open(c.Context(), storage.Write)
			if err != nil {
				return err
			}
			defer console.Closing(&err, b.Close)
			a.Say("Checking %s. This takes a minute or more.", at)
			results, failed := objstore.Validate(c.Context(), b, "validate/")
			type view struct {
				Check   string  `json:"check"`
				OK      bool    `json:"ok"`
				Seconds float64 `json:"seconds"`
				Problem string  `json:"problem,omitempty"`
			}
			var views []view
			broken := 0
			for _, r := range results {
				v := view{r.Name, r.Err == nil, r.Duration.Seconds(), ""}
				if r.Err != nil {
					broken++
					v.Problem = r.Err.Error()
				}
				views = append(views, v)
			}
			if err := console.List(a.Console, views, "No check ran.", console.Wide("PROMISE", func(v view) string { return v.Check }),
				console.Col("SECONDS", func(v view) string { return fmt.Sprintf("%.1f", v.Seconds) }),
				console.Wide("RESULT", func(v view) string {
					if v.OK {
						return "kept"
					}
					return "BROKEN: " + v.Problem
				})); err != nil {
				return err
			}
			if failed != nil && dr.KindOf(console.Classify(failed)) == dr.KindInternal {
				return dr.New(dr.KindUnsupported, cmp.Or(dr.CodeOf(failed), dr.CodeStoreNotConditional), "store.validate", "%s can't be used as a store: %d of %d promises are broken: %w", at, broken, len(results), failed).
					WithHint("Choose another store. A replica in this one could be lost or altered without a word.")
			}
			return console.Classify(failed)
		}}
	c.Flags().StringVar(&address, "store", "", "the store, instead of the argument")
	return c
}
