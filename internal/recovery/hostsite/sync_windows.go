package hostsite

// syncDir does nothing: directories can't be synced on Windows, where NTFS journals renames.
func syncDir(string) error { return nil }
