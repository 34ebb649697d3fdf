package hyperv

// Abandon gives the directory free as the end of its process would, without closing anything.
func (h *Host) Abandon() { _ = h.lock.Close() }

// Named returns how the host names a token of this directory.
func (h *Host) Named(token string) string { return h.stamp.Name(token) }
