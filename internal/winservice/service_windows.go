package winservice

import (
	"context"
	"errors"
	"log/slog"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
	"golang.org/x/sys/windows/svc/mgr"

	"holdfast/internal/dr"
)

// failed makes an error of a call of Windows.
func failed(op, what string, err error) error {
	kind := dr.KindUnavailable
	switch {
	case errors.Is(err, windows.ERROR_ACCESS_DENIED):
		return dr.Errorf(dr.KindForbidden, op, what+": %w", err).WithHint("Run the command as an administrator.")
	case errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST):
		kind = dr.KindNotFound
	case errors.Is(err, windows.ERROR_SERVICE_MARKED_FOR_DELETE):
		return dr.Errorf(dr.KindConflict, op, what+": %w", err).WithHint("Close the windows that show services (services.msc, Task Manager) and try again.")
	}
	return dr.Errorf(kind, op, what+": %w", err)
}

// open connects to the service control manager and opens a service, which is nil if it does not exist.
func open(op, name string) (*mgr.Mgr, *mgr.Service, error) {
	if err := checkName(op, name); err != nil {
		return nil, nil, err
	}
	m, err := mgr.Connect()
	if err != nil {
		return nil, nil, failed(op, "connect to the service control manager", err)
	}
	s, err := m.OpenService(name)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		return m, nil, nil
	}
	if err != nil {
		return nil, nil, errors.Join(failed(op, "open service "+name, err), m.Disconnect())
	}
	return m, s, nil
}

// Install makes the service and its event source, or updates them. It does not start it.
func Install(ctx context.Context, cfg Config) (err error) {
	const op = "winservice.Install"
	if err := cfg.check(); err != nil {
		return err
	}
	m, s, err := open(op, cfg.Name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Disconnect()) }()
	want := mgr.Config{ServiceType: windows.SERVICE_WIN32_OWN_PROCESS, StartType: mgr.StartAutomatic, ErrorControl: mgr.ErrorNormal,
		DisplayName: cfg.Display, Description: cfg.Description}
	if s == nil {
		s, err = m.CreateService(cfg.Name, cfg.Exe, want, cfg.Args...)
	} else {
		want.BinaryPathName = windows.ComposeCommandLine(append([]string{cfg.Exe}, cfg.Args...))
		err = s.UpdateConfig(want)
		if errors.Is(err, errInvalidLevel) { // see delay
			err = nil
		}
	}
	if err != nil {
		if s != nil {
			err = errors.Join(err, s.Close())
		}
		return failed(op, "install service "+cfg.Name, err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := settle(op, cfg.Name, s); err != nil {
		return err
	}
	err = eventlog.InstallAsEventCreate(cfg.Name, eventlog.Error|eventlog.Warning|eventlog.Info)
	if err != nil && !sourceExists(cfg.Name) {
		return failed(op, "install the event source "+cfg.Name, err)
	}
	return ctx.Err()
}

// settle sets what an installer's tables can't: the restarts after failures, and the delayed start.
func settle(op, name string, s *mgr.Service) error {
	var actions []mgr.RecoveryAction
	for _, d := range restartDelays {
		actions = append(actions, mgr.RecoveryAction{Type: mgr.ServiceRestart, Delay: d})
	}
	if err := s.SetRecoveryActions(actions, uint32(restartReset/time.Second)); err != nil {
		return failed(op, "set the restarts of service "+name, err)
	}
	if err := optional(s.SetRecoveryActionsOnNonCrashFailures(true)); err != nil {
		return failed(op, "set the restarts of service "+name, err)
	}
	if err := optional(delay(s)); err != nil {
		return failed(op, "delay the start of service "+name, err)
	}
	return nil
}

// errInvalidLevel is how systems refuse a setting that they do not know (Wine: delayed start).
const errInvalidLevel = windows.ERROR_INVALID_LEVEL

// optional forgives a system that does not know a setting.
func optional(err error) error {
	if errors.Is(err, errInvalidLevel) {
		return nil
	}
	return err
}

// delay starts the service some time after the others at boot: Hyper-V comes first.
func delay(s *mgr.Service) error {
	info := windows.SERVICE_DELAYED_AUTO_START_INFO{IsDelayedAutoStartUp: 1}
	return windows.ChangeServiceConfig2(s.Handle, windows.SERVICE_CONFIG_DELAYED_AUTO_START_INFO, (*byte)(unsafe.Pointer(&info)))
}

// Remove stops and deletes the service and its event source. Idempotent.
func Remove(ctx context.Context, name string) (err error) {
	const op = "winservice.Remove"
	if err := Stop(ctx, name); err != nil && dr.KindOf(err) != dr.KindNotFound {
		return err
	}
	m, s, err := open(op, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Disconnect()) }()
	if s != nil {
		err = errors.Join(s.Delete(), s.Close())
		if err != nil {
			return failed(op, "delete service "+name, err)
		}
	}
	if sourceExists(name) {
		if err := eventlog.Remove(name); err != nil {
			return failed(op, "remove the event source "+name, err)
		}
	}
	return nil
}

// Start starts the service and waits until it runs or ctx ends. Idempotent.
func Start(ctx context.Context, name string) error {
	const op = "winservice.Start"
	return control(op, name, func(s *mgr.Service) error {
		if st, err := s.Query(); err == nil && st.State == svc.Running {
			return nil // asked first: Wine starts a second process
		}
		if err := s.Start(); err != nil && !errors.Is(err, windows.ERROR_SERVICE_ALREADY_RUNNING) {
			return failed(op, "start service "+name, err)
		}
		return wait(ctx, op, name, s, svc.Running)
	})
}

// Stop stops the service and waits until it has ended or ctx has. Idempotent; dr.KindNotFound if there is none.
func Stop(ctx context.Context, name string) error {
	const op = "winservice.Stop"
	return control(op, name, func(s *mgr.Service) error {
		if _, err := s.Control(svc.Stop); err != nil && !errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE) {
			if !errors.Is(err, windows.ERROR_SERVICE_CANNOT_ACCEPT_CTRL) { // it is starting or stopping
				return failed(op, "stop service "+name, err)
			}
		}
		return wait(ctx, op, name, s, svc.Stopped)
	})
}

func control(op, name string, fn func(*mgr.Service) error) error {
	m, s, err := open(op, name)
	if err != nil {
		return err
	}
	if s == nil {
		return errors.Join(dr.Errorf(dr.KindNotFound, op, "there is no service %s", name), m.Disconnect())
	}
	err = fn(s)
	if cerr := errors.Join(s.Close(), m.Disconnect()); err == nil {
		err = cerr
	}
	return err
}

// wait polls until the service is in a state. A service that ends while it should start has failed.
func wait(ctx context.Context, op, name string, s *mgr.Service, want svc.State) error {
	for {
		st, err := s.Query()
		if err != nil {
			return failed(op, "ask for the state of service "+name, err)
		}
		if st.State == want {
			return nil
		}
		if want == svc.Running && st.State == svc.Stopped {
			return dr.Errorf(dr.KindUnavailable, op, "service %s ended at its start (%v)", name, windows.Errno(st.Win32ExitCode)).
				WithHint("The event log 'Application' has the reason, with the source %s.", name)
		}
		if want == svc.Stopped && st.State == svc.Running { // it was starting when it was told to stop
			if _, err := s.Control(svc.Stop); err != nil && !errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE) &&
				!errors.Is(err, windows.ERROR_SERVICE_CANNOT_ACCEPT_CTRL) {
				return failed(op, "stop service "+name, err)
			}
		}
		select {
		case <-ctx.Done():
			return dr.Errorf(dr.KindUnavailable, op, "service %s is still %s: %w", name, stateOf(st.State), context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func stateOf(s svc.State) State {
	switch s {
	case svc.Stopped:
		return Stopped
	case svc.StartPending:
		return Starting
	case svc.StopPending:
		return Stopping
	case svc.Running:
		return Running
	}
	return Paused
}

// Query tells what the service does. A service that does not exist is Absent, without error.
func Query(_ context.Context, name string) (Status, error) {
	const op = "winservice.Query"
	m, s, err := open(op, name)
	if err != nil {
		return Status{}, err
	}
	if s == nil {
		return Status{State: Absent}, m.Disconnect()
	}
	st, err := s.Query()
	err = errors.Join(err, s.Close(), m.Disconnect())
	if err != nil {
		return Status{}, failed(op, "ask for the state of service "+name, err)
	}
	return Status{State: stateOf(st.State), PID: st.ProcessId, ExitCode: st.Win32ExitCode}, nil
}

// IsService reports whether the service control manager started this process.
func IsService() bool {
	ok, err := svc.IsWindowsService()
	return err == nil && ok
}

// Run runs work as the service of this process until Windows stops it or it ends. A
// failure of work is returned, and told to Windows, which then restarts the service: Run
// sees to that itself, so that a service that an installer made is restarted too.
func Run(cfg RunConfig, work Work) error {
	if cfg.StopTimeout <= 0 {
		cfg.StopTimeout = time.Minute
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	const op = "winservice.Run"
	if err := control(op, cfg.Name, func(s *mgr.Service) error { return settle(op, cfg.Name, s) }); err != nil {
		cfg.Log.Warn("Windows will not restart the service after a failure.", "error", err)
	}
	e := &execution{cfg: cfg, work: work}
	if err := svc.Run(cfg.Name, e); err != nil {
		return failed(op, "run as service "+cfg.Name, err)
	}
	return e.err
}

// execution is the handler of one run.
type execution struct {
	cfg  RunConfig
	work Work
	err  error
}

// Execute serves the requests of the service control manager.
func (e *execution) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (specific bool, code uint32) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- e.work(ctx) }()
	current := svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptShutdown}
	status <- current
	var tick <-chan time.Time
	var deadline <-chan time.Time
	for {
		select {
		case e.err = <-done:
			if e.err == nil || tick != nil && errors.Is(e.err, context.Canceled) {
				e.err = nil
				return false, 0
			}
			e.cfg.Log.Error("The service failed.", "error", e.err)
			return true, 1
		case r := <-requests:
			switch r.Cmd {
			case svc.Interrogate:
				status <- current
			case svc.Stop, svc.Shutdown:
				if tick != nil {
					continue
				}
				cancel()
				ticker := time.NewTicker(time.Second)
				defer ticker.Stop()
				timer := time.NewTimer(e.cfg.StopTimeout)
				defer timer.Stop()
				tick, deadline = ticker.C, timer.C
				current = svc.Status{State: svc.StopPending, WaitHint: 5000}
				status <- current
			}
		case <-tick:
			current.CheckPoint++
			status <- current
		case <-deadline:
			e.err = dr.Errorf(dr.KindUnavailable, "winservice.Run", "the service did not end within %v", e.cfg.StopTimeout)
			e.cfg.Log.Error("The service was ended.", "error", e.err)
			return true, 2
		}
	}
}

// EventLog opens the event log's source of a service for records of at least level; the function returned closes it.
func EventLog(name string, level slog.Leveler) (slog.Handler, func() error, error) {
	const op = "winservice.EventLog"
	if err := checkName(op, name); err != nil {
		return nil, nil, err
	}
	l, err := eventlog.Open(name)
	if err != nil {
		return nil, nil, failed(op, "open the event log", err)
	}
	return &handler{sink: l, level: level}, l.Close, nil
}
