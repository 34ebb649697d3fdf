package winservice

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	"holdfast/internal/dr"
)

// sourceExists reports whether the event log knows a source.
func sourceExists(name string) bool {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SYSTEM\CurrentControlSet\Services\EventLog\Application\`+name, registry.QUERY_VALUE)
	if err != nil {
		return false
	}
	return k.Close() == nil
}

// winHTTPProxy is WINHTTP_PROXY_INFO.
type winHTTPProxy struct {
	access        uint32
	proxy, bypass *uint16
}

const winHTTPNamed = 3 // WINHTTP_ACCESS_TYPE_NAMED_PROXY

// MachineProxy returns the proxy that the machine's services use: that of WinHTTP
// ("netsh winhttp set proxy"), else the one that a policy sets for all users. None is the zero value.
func MachineProxy() (Proxy, error) {
	const op = "winservice.MachineProxy"
	proc := windows.NewLazySystemDLL("winhttp.dll").NewProc("WinHttpGetDefaultProxyConfiguration")
	if err := proc.Find(); err != nil {
		return Proxy{}, failed(op, "read WinHTTP's proxy", err)
	}
	var info winHTTPProxy
	r, _, err := proc.Call(uintptr(unsafe.Pointer(&info)))
	if r == 0 {
		return Proxy{}, failed(op, "read WinHTTP's proxy", err)
	}
	servers, bypass := windows.UTF16PtrToString(info.proxy), windows.UTF16PtrToString(info.bypass)
	free := windows.NewLazySystemDLL("kernel32.dll").NewProc("GlobalFree")
	for _, p := range []*uint16{info.proxy, info.bypass} {
		if p != nil {
			_, _, _ = free.Call(uintptr(unsafe.Pointer(p)))
		}
	}
	if info.access != winHTTPNamed || servers == "" {
		if servers, bypass, err = policyProxy(); err != nil {
			return Proxy{}, failed(op, "read the machine's proxy", err)
		}
	}
	p, err := parseProxy(servers, bypass)
	if err != nil {
		return Proxy{}, dr.Errorf(dr.KindInvalid, op, "%v", err).WithHint("See 'netsh winhttp show proxy'.")
	}
	return p, nil
}

// policyProxy reads the settings that a policy makes for the machine.
func policyProxy() (servers, bypass string, err error) {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SOFTWARE\Microsoft\Windows\CurrentVersion\Internet Settings`, registry.QUERY_VALUE)
	if errors.Is(err, registry.ErrNotExist) {
		return "", "", nil
	}
	if err != nil {
		return "", "", err
	}
	defer k.Close()
	on, _, err := k.GetIntegerValue("ProxyEnable")
	if errors.Is(err, registry.ErrNotExist) || err == nil && on == 0 {
		return "", "", nil
	}
	if err != nil {
		return "", "", err
	}
	if servers, _, err = k.GetStringValue("ProxyServer"); err != nil && !errors.Is(err, registry.ErrNotExist) {
		return "", "", err
	}
	if bypass, _, err = k.GetStringValue("ProxyOverride"); err != nil && !errors.Is(err, registry.ErrNotExist) {
		return "", "", err
	}
	return servers, bypass, nil
}
