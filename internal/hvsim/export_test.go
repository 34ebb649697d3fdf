package hvsim

// Renders tells how often VMs of the host were rendered.
func Renders(h *Host) int64 { return h.renders.Load() }
