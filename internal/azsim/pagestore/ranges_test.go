package pagestore_test

import (
	"bytes"
	"slices"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"
)

// pr is a range as it was told.
type pr struct {
	off, n  int64
	cleared bool
}

func told(list pageblob.PageList) []pr {
	var out []pr
	for _, x := range list.PageRange {
		out = append(out, pr{*x.Start, *x.End - *x.Start + 1, false})
	}
	for _, x := range list.ClearRange {
		out = append(out, pr{*x.Start, *x.End - *x.Start + 1, true})
	}
	return out
}

// raw asks for the ranges, or the difference if o is not nil. An error is the first.
func (w *world) raw(cl *pageblob.Client, o *pageblob.GetPageRangesDiffOptions) ([][]pr, error) {
	var out [][]pr
	if o == nil {
		for p := cl.NewGetPageRangesPager(nil); p.More(); {
			page, err := p.NextPage(w.ctx)
			if err != nil {
				return nil, err
			}
			out = append(out, told(page.PageList))
		}
		return out, nil
	}
	for p := cl.NewGetPageRangesDiffPager(o); p.More(); {
		page, err := p.NextPage(w.ctx)
		if err != nil {
			return nil, err
		}
		out = append(out, told(page.PageList))
	}
	return out, nil
}

// ranges gives all ranges in order, and by how many answers they came.
func (w *world) ranges(cl *pageblob.Client, o *pageblob.GetPageRangesDiffOptions) ([]pr, int) {
	w.t.Helper()
	pages, err := w.raw(cl, o)
	w.must(err)
	all := slices.Concat(pages...)
	slices.SortFunc(all, func(a, b pr) int { return int(a.off - b.off) })
	return all, len(pages)
}

// pagesOf lists the numbers of the pages that ranges have.
func pagesOf(list []pr, unit int64) []int64 {
	var out []int64
	for _, x := range list {
		for p := x.off / unit; p*unit < x.off+x.n; p++ {
			out = append(out, p)
		}
	}
	return out
}

// changed lists the numbers of the pages that differ.
func changed(a, b []byte, unit int) []int64 {
	var out []int64
	for i := 0; i < len(b); i += unit {
		if !bytes.Equal(a[i:min(len(a), i+unit)], b[i:min(len(b), i+unit)]) {
			out = append(out, int64(i/unit))
		}
	}
	return out
}
