package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A guard says where a Client may go. It is not changed after it has been made.
type guard struct {
	ports []uint16
	clear []string // host:port that may be reached without TLS
	allow []netip.Prefix
	own   func() []netip.AddrPort
}

func newGuard(c *Config) (*guard, error) {
	g := &guard{ports: slices.Clone(c.Ports), own: c.Own}
	if len(g.ports) == 0 {
		g.ports = []uint16{443}
	}
	if slices.Contains(g.ports, 0) {
		return nil, errors.New("egress: there is no port 0")
	}
	if g.own == nil {
		g.own = func() []netip.AddrPort { return nil }
	}
	for _, h := range c.InsecureHTTP {
		u, err := url.Parse("http://" + h)
		if err != nil || u.Host != h || u.Hostname() == "" {
			return nil, errors.New(`egress: insecure_http takes hosts, as "host" or "host:port"`)
		}
		if err := checkHost(u); err != nil {
			return nil, fmt.Errorf("insecure_http: %w", err)
		}
		port, err := portOf(u)
		if err != nil {
			return nil, fmt.Errorf("insecure_http: %w", err)
		}
		g.clear = append(g.clear, place(u, port))
	}
	for _, p := range c.InsecureAllow {
		if !p.IsValid() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("egress: insecure_allow %s: it must be a prefix such as 10.0.0.0/8 or fd00::/8", p)
		}
		g.allow = append(g.allow, p.Masked())
	}
	return g, nil
}

// url checks all of a URL that can be checked before its host is resolved.
func (g *guard) url(u *url.URL) error {
	if u.Scheme != "https" && u.Scheme != "http" {
		return &RefusedError{What: "a URL", Why: "it does not begin with https://"}
	}
	if u.User != nil || u.Opaque != "" {
		return &RefusedError{What: "a URL", Why: "before its host there is a user, or it has no host at all"}
	}
	if err := checkHost(u); err != nil {
		return err
	}
	port, err := portOf(u)
	if err != nil {
		return err
	}
	at := place(u, port)
	if u.Scheme == "http" {
		if !slices.Contains(g.clear, at) {
			return &RefusedError{What: "asking " + at + " by http", Why: "what is sent can be read and changed on its way", Setting: "insecure_http " + at}
		}
		return nil
	}
	if !slices.Contains(g.ports, port) {
		return &RefusedError{What: "asking " + at, Why: fmt.Sprintf("port %d is not one of those that are allowed", port), Setting: fmt.Sprintf("ports %d", port)}
	}
	return nil
}

// control is net.Dialer's ControlContext: it is called with the address that a
// socket is about to be connected to.
func (g *guard) control(_ context.Context, network, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp4" && network != "tcp6" {
		return &RefusedError{What: "connecting by " + network, Why: "it is not a TCP connection to an address"}
	}
	return g.judge(at)
}

// judge returns a *RefusedError for an address that must not be connected to.
// Whatever a packet to it may turn into on its way is judged, too.
func (g *guard) judge(at netip.AddrPort) error {
	ip := plain(at.Addr())
	what := "connecting to " + netip.AddrPortFrom(ip, at.Port()).String()
	inner := within(ip)
	every := append([]netip.Addr{ip}, inner...)
	for _, a := range every {
		if b := find(metadata, a); b != nil {
			return &RefusedError{What: what, Why: "it is a metadata service (" + b.what + "), which no setting opens"}
		}
		if g.isOwn(netip.AddrPortFrom(a, at.Port())) {
			return &RefusedError{What: what, Why: "this program itself listens there, which no setting opens"}
		}
	}
	if at.Addr().Zone() != "" {
		return &RefusedError{What: what, Why: "the address has a zone, so it is on a link of this machine"}
	}
	if g.allowed(ip) {
		return nil
	}
	if nat64.Contains(ip) {
		every = inner
	}
	for _, a := range every {
		why := ""
		if b := find(special, a); b != nil {
			why = b.what
		} else if a.Is6() && !globalUnicast.Contains(a) {
			why = "not global (RFC 4291)"
		}
		if why == "" || g.allowed(a) {
			continue
		}
		if why = "it is " + why; a != ip {
			why = "it leads to " + a.String() + ": " + why
		}
		return &RefusedError{What: what, Why: why, Setting: "insecure_allow " + netip.PrefixFrom(a, a.BitLen()).String()}
	}
	return nil
}

func (g *guard) allowed(ip netip.Addr) bool {
	return slices.ContainsFunc(g.allow, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// isOwn reports whether a connection to an address would end at one of our own
// listeners.
func (g *guard) isOwn(at netip.AddrPort) bool {
	return slices.ContainsFunc(g.own(), func(own netip.AddrPort) bool {
		if own.Port() != at.Port() {
			return false
		}
		ip := plain(own.Addr())
		anywhere := !ip.IsValid() || ip.IsUnspecified()
		return ip == at.Addr() || (anywhere || ip.IsLoopback() && at.Addr().IsUnspecified()) && ofThisMachine(at.Addr())
	})
}

// ofThisMachine reports whether an address is one of this machine's. Where that
// cannot be found out, each one is.
func ofThisMachine(ip netip.Addr) bool {
	if ip.IsLoopback() || ip.IsUnspecified() {
		return true
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	return slices.ContainsFunc(list, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && plain(p.Addr()) == ip
	})
}

// checkHost refuses hosts that are written as nobody writes them who means
// well. A resolver may take 0x7f.1 or 2130706433 for an address.
func checkHost(u *url.URL) error {
	host := u.Hostname()
	bracketed := strings.HasPrefix(u.Host, "[")
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "":
		return &RefusedError{What: "a URL", Why: "it has no host"}
	case err == nil && ip.Zone() != "":
		return &RefusedError{What: "asking " + host, Why: "the address has a zone"}
	case err == nil && ip.Is6() == bracketed:
		return nil
	case err == nil || bracketed:
		return &RefusedError{What: "a URL", Why: "brackets are for IPv6 addresses, and only for them"}
	case len(host) > 253 || strings.IndexFunc(host, notOfName) >= 0:
		return &RefusedError{What: "a URL", Why: "its host has characters that names of hosts do not have; write international names in their form that begins with xn--"}
	}
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	if slices.Contains(labels, "") {
		return &RefusedError{What: "asking " + host, Why: "a part of the name is empty"}
	}
	if numeric(labels[len(labels)-1]) {
		return &RefusedError{What: "asking " + host, Why: "it is neither a name nor an address in its usual form"}
	}
	return nil
}

func notOfName(c rune) bool {
	return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.'
}

// numeric reports whether the last part of a host makes it an address and not
// a name (WHATWG URL, "ends in a number checker").
func numeric(label string) bool {
	if strings.Trim(label, "0123456789") == "" {
		return true
	}
	hex := strings.ToLower(label)
	return strings.HasPrefix(hex, "0x") && strings.Trim(hex[2:], "0123456789abcdef") == ""
}

// portOf returns the port of a URL, which may be its scheme's.
func portOf(u *url.URL) (uint16, error) {
	port := u.Port()
	switch {
	case port == "" && strings.HasSuffix(u.Host, ":"):
		return 0, &RefusedError{What: "asking " + u.Host, Why: "after the colon there is no port"}
	case port == "" && u.Scheme == "http":
		return 80, nil
	case port == "":
		return 443, nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || port[0] == '0' {
		return 0, &RefusedError{What: "asking " + u.Hostname(), Why: "its port is no number from 1 to 65535"}
	}
	return uint16(n), nil
}

// place names a host and a port in one way.
func place(u *url.URL, port uint16) string {
	return net.JoinHostPort(strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")), strconv.Itoa(int(port)))
}
