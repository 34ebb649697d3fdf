package guestcheck

// windows says what is not looked at in Windows guests: NTFS and the registry
// are recognised, not read. The partition table, the firmware's loader and
// BitLocker are checked as for every guest.
func (c *checker) windows() {
	for id, what := range map[CheckID]string{
		CheckDrivers: "whether the drivers of the target start at boot stands in the registry of Windows, which is not read",
		CheckNetwork: "how Windows gets its addresses stands in its registry, which is not read",
		CheckAgent:   "the programs of Windows lie on NTFS, which is not read",
		CheckRemote:  "whether Remote Desktop is on stands in the registry of Windows, which is not read",
	} {
		c.skip(id, c.r.Facts.Root, "%s", what)
	}
}
