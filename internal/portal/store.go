package portal

import (
	"net/http"

	"holdfast/internal/dr"
	"holdfast/internal/portal/estate"
	"holdfast/internal/portal/page"
	"holdfast/internal/vault"
)

// storePages are the store and how the replicas in it are looked after.
type storePages struct{ *core }

type storeRow struct {
	dr.ProtectedItem
	vault.UpkeepStatus
}

type storeBody struct {
	Rows                     []storeRow
	Points, Objects, Pending int
	Bytes, Stored            int64
	Damaged, Failing         int // items
	Unscrubbed               int
	Pages                    estate.Pages
}

func (p storePages) show(w http.ResponseWriter, r *page.Request) error {
	e, err := estate.Load(r.Context(), p.V)
	if err != nil {
		return err
	}
	var b storeBody
	rows := make([]storeRow, 0, len(e.Items))
	for _, it := range e.Items {
		s, err := p.V.UpkeepStatus(r.Context(), it.ID)
		if dr.KindOf(err) == dr.KindNotFound && err != nil {
			continue
		}
		if err != nil {
			return err
		}
		rows = append(rows, storeRow{it, s})
		b.Points, b.Objects, b.Pending, b.Bytes, b.Stored = b.Points+s.Points, b.Objects+s.Objects, b.Pending+s.Pending, b.Bytes+s.Bytes, b.Stored+s.StoredBytes
		if len(s.Damaged) > 0 {
			b.Damaged++
		}
		if s.PassError != nil || s.ScrubError != "" {
			b.Failing++
		}
		if s.LastScrub.IsZero() {
			b.Unscrubbed++
		}
	}
	b.Rows, b.Pages = estate.Paged(r, rows, estate.PageSize)
	return p.Render(w, r, "store", page.View{Title: "Store", Kind: "Replicas, maintenance and scrubs", Section: "store", Icon: "store", Topics: "item", Body: b})
}
