package libvirt

// OnStage makes fn called at the named stages of cuts.
func (c *Config) OnStage(fn func(string)) { c.stage = fn }
