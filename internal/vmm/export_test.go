package vmm

// Arguments are the arguments of the program.
func Arguments() []string { return arguments() }
