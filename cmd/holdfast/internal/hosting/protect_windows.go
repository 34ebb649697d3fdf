package hosting

import (
	"os"

	"golang.org/x/sys/windows"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/dr"
)

// access of a state directory: the system and administrators, and nobody by
// inheritance. In C:\ProgramData every user of the machine could read the agent's keys otherwise.
const access = "O:BAD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"

// Protect makes a directory and keeps all but the system and administrators out of it. Idempotent.
func Protect(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return console.ClassifyAs(err, "make the state directory")
	}
	sd, err := windows.SecurityDescriptorFromString(access)
	if err != nil {
		return dr.Errorf(dr.KindInternal, "holdfast.host", "describe the access to %s: %w", dir, err)
	}
	owner, _, err := sd.Owner()
	if err != nil {
		return dr.Errorf(dr.KindInternal, "holdfast.host", "describe the access to %s: %w", dir, err)
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		return dr.Errorf(dr.KindInternal, "holdfast.host", "describe the access to %s: %w", dir, err)
	}
	what := windows.SECURITY_INFORMATION(windows.OWNER_SECURITY_INFORMATION | windows.DACL_SECURITY_INFORMATION | windows.PROTECTED_DACL_SECURITY_INFORMATION)
	if err := windows.SetNamedSecurityInfo(dir, windows.SE_FILE_OBJECT, what, owner, nil, dacl, nil); err != nil {
		return dr.Errorf(dr.KindForbidden, "holdfast.host", "keep other users out of the state directory %s: %w", dir, err).
			WithHint("Run the command as an administrator, in a window that was opened with 'Run as administrator'.")
	}
	return nil
}
