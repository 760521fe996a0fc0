package egress

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func client(t *testing.T, c Config) *Client {
	t.Helper()
	made, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(made.CloseIdle)
	return made
}

func prefixes(list ...string) []netip.Prefix {
	var made []netip.Prefix
	for _, p := range list {
		made = append(made, netip.MustParsePrefix(p))
	}
	return made
}

// get asks for a URL and reads the answer.
func get(t *testing.T, c *Client, address string) (int, string, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// refused fails the test if err does not say that something was refused.
func refused(t *testing.T, what string, err error) *RefusedError {
	t.Helper()
	e, ok := errors.AsType[*RefusedError](err)
	if !ok {
		t.Fatalf("%s was not refused: %v", what, err)
	}
	return e
}

// counter is a listener at every address of the machine that counts who comes.
func counter(t *testing.T) (port uint16, count *atomic.Int64) {
	t.Helper()
	return counterAt(t, ":0")
}

// counterAt is counter at one address.
func counterAt(t *testing.T, address string) (port uint16, count *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	count = new(atomic.Int64)
	done := make(chan struct{})
	go func() { // ends when the listener is closed
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			count.Add(1)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return uint16(l.Addr().(*net.TCPAddr).Port), count
}

// corpus returns the URLs of testdata/refused.txt for a port, and what the
// names in them resolve to.
func corpus(t *testing.T, port uint16) (urls []string, names map[string][]string) {
	t.Helper()
	f, err := os.Open("testdata/refused.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names = map[string][]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if lines.Text() == "" || strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		line := strings.ReplaceAll(lines.Text(), "{port}", fmt.Sprint(port))
		raw, addresses, has := strings.Cut(line, " ")
		urls = append(urls, raw)
		if u, err := url.Parse(raw); has && err == nil {
			names[strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))] = strings.Split(addresses, ",")
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return urls, names
}

func TestNothingOfTheCorpusIsConnectedTo(t *testing.T) {
	port, count := counter(t)
	urls, names := corpus(t, port)
	if len(urls) < 250 {
		t.Fatalf("the corpus has %d URLs", len(urls))
	}
	answer := fixed(names)
	c := client(t, Config{Ports: []uint16{port}, Redirects: MaxRedirects, Resolver: resolver(t, func(name string) []netip.Addr {
		if list := answer(name); list != nil {
			return list
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} // whatever a resolver takes it for
	})})
	for _, raw := range urls {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, raw, http.NoBody)
		if err != nil {
			continue // no URL at all
		}
		if resp, err := c.Do(r); err == nil {
			t.Errorf("%q was answered: %s", raw, resp.Status)
			resp.Body.Close()
		} else if _, ok := errors.AsType[*RefusedError](err); !ok {
			t.Errorf("%q was not refused: %v", raw, err)
		}
		// As if the URL had not been looked at.
		host := strings.Trim(r.URL.Hostname(), "[]")
		if conn, err := c.base.DialContext(t.Context(), "tcp", net.JoinHostPort(host, fmt.Sprint(port))); err == nil {
			t.Errorf("%q leads to %s", raw, conn.RemoteAddr())
			conn.Close()
		}
	}
	if n := count.Load(); n != 0 {
		t.Fatalf("there were %d connections", n)
	}
	open := client(t, Config{Ports: []uint16{port}, InsecureAllow: prefixes("127.0.0.0/8")})
	if _, _, err := get(t, open, fmt.Sprintf("https://127.0.0.1:%d/", port)); err == nil || count.Load() == 0 {
		t.Errorf("the listener does not count: %v", err)
	}
}

// What resolves to a good address first and to a bad one then is refused then.
func TestANameThatIsReboundIsRefused(t *testing.T) {
	port, count := counterAt(t, "127.0.0.1:0")
	good := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
	}), ReadHeaderTimeout: time.Minute}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.2:%d", port))
	if err != nil {
		t.Skip("this machine has no second loopback address: ", err)
	}
	served := make(chan error, 1)
	go func() { served <- good.Serve(l) }()
	t.Cleanup(func() { _ = good.Close(); <-served })

	var lookups atomic.Int64
	c := client(t, Config{
		InsecureHTTP:  []string{fmt.Sprintf("rebind.example:%d", port)},
		InsecureAllow: prefixes("127.0.0.2/32"), // stands for a public address
		Resolver: resolver(t, func(string) []netip.Addr {
			if lookups.Add(1) <= 2 { // A and AAAA
				return []netip.Addr{netip.MustParseAddr("127.0.0.2")}
			}
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		}),
	})
	address := fmt.Sprintf("http://rebind.example:%d/", port)
	if status, _, err := get(t, c, address); err != nil || status != http.StatusOK {
		t.Fatalf("the first address: %d, %v", status, err)
	}
	for range 5 {
		_, _, err := get(t, c, address)
		refused(t, "the second address", err)
	}
	if n := count.Load(); n != 0 {
		t.Errorf("there were %d connections", n)
	}
}

func TestPublicAddressesAreAllowed(t *testing.T) {
	c := client(t, Config{})
	for _, a := range []string{
		"1.0.0.1", "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
		"168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0",
		"192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8",
		"2001:200::1", "2001:4860:4860::8888", "2003::1", "2606:4700:4700::1111", "2a00:1450:4001::5efe:8.8.8.8", "3ffd::1",
	} {
		if err := c.guard.judge(netip.AddrPortFrom(netip.MustParseAddr(a), 443)); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
}

func TestWhatIsAllowedInsecurelyIsNoMore(t *testing.T) {
	c := client(t, Config{InsecureAllow: prefixes("0.0.0.0/0", "::/0"), Own: func() []netip.AddrPort {
		return []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:2019"), netip.MustParseAddrPort("[::]:8443"), netip.MustParseAddrPort("10.7.7.7:9000")}
	}})
	for address, allowed := range map[string]bool{
		"10.0.0.1:443":                    true,
		"127.0.0.1:443":                   true,
		"[fd00::1]:443":                   true,
		"[64:ff9b::10.0.0.1]:443":         true,
		"169.254.169.254:80":              false,
		"[::ffff:169.254.169.254]:80":     false,
		"[64:ff9b::169.254.169.254]:80":   false,
		"[64:ff9b:1:a9fe:a9:fe00::]:80":   false,
		"[2002:a9fe:a9fe::1]:80":          false,
		"[2001:0:808:808::5601:5601]:80":  false,
		"[fd00::5efe:169.254.169.254]:80": false,
		"[fd00:ec2::254]:80":              false,
		"168.63.129.16:443":               false,
		"127.0.0.1:2019":                  false,
		"[::ffff:127.0.0.1]:2019":         false,
		"[::127.0.0.1]:2019":              false,
		"0.0.0.0:2019":                    false, // Linux connects it to loopback
		"127.0.0.1:8443":                  false,
		"127.9.9.9:8443":                  false,
		"[::1]:8443":                      false,
		"10.7.7.7:9000":                   false,
		"10.7.7.8:9000":                   true,
		"[fe80::1%lo]:443":                false,
	} {
		err := c.guard.judge(netip.MustParseAddrPort(address))
		if allowed != (err == nil) {
			t.Errorf("%s: %v", address, err)
		}
		if e, ok := errors.AsType[*RefusedError](err); ok && e.Setting != "" {
			t.Errorf("%s: a setting that would not help is named: %s", address, e.Setting)
		}
	}
}

func TestOneOfTheMachinesOwnAddressesIsItsOwn(t *testing.T) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	c := client(t, Config{InsecureAllow: prefixes("0.0.0.0/0", "::/0"), Own: func() []netip.AddrPort {
		return []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:443")}
	}})
	for _, a := range list {
		ip := netip.MustParsePrefix(a.String()).Addr()
		refused(t, ip.String(), c.guard.judge(netip.AddrPortFrom(ip, 443)))
	}
}

// The setting that an error names does allow what was refused.
func TestErrorsNameTheSettingThatWouldAllowIt(t *testing.T) {
	for _, a := range []string{"10.0.0.1", "127.0.0.1", "192.88.99.2", "fd00::1", "2002:808:808::1", "2001:0:808:808::", "64:ff9b::10.0.0.1", "64:ff9b:1::8.8.8.8", "2a00:1450::5efe:10.0.0.1", "4000::1"} {
		at := netip.AddrPortFrom(netip.MustParseAddr(a), 443)
		e := refused(t, a, client(t, Config{}).guard.judge(at))
		setting, value, _ := strings.Cut(e.Setting, " ")
		if setting != "insecure_allow" || !strings.Contains(e.Error(), e.Setting) {
			t.Errorf("%s: %v", a, e)
		}
		if err := client(t, Config{InsecureAllow: prefixes(value)}).guard.judge(at); err != nil {
			t.Errorf("%s: with %s: %v", a, e.Setting, err)
		}
	}
	u := &url.URL{Scheme: "https", Host: "hooks.example:8443"}
	if e := refused(t, "a port", client(t, Config{}).Check(u)); e.Setting != "ports 8443" {
		t.Error(e)
	}
	u = &url.URL{Scheme: "http", Host: "Hooks.example."}
	e := refused(t, "http", client(t, Config{}).Check(u))
	if e.Setting != "insecure_http hooks.example:80" {
		t.Error(e)
	}
	if err := client(t, Config{InsecureHTTP: []string{"hooks.example:80"}}).Check(u); err != nil {
		t.Error(err)
	}
	if err := client(t, Config{InsecureHTTP: []string{"hooks.example"}}).Check(u); err != nil {
		t.Error(err)
	}
}

func TestSettingsThatCannotBeMeantAreRefused(t *testing.T) {
	for name, c := range map[string]Config{
		"port 0":           {Ports: []uint16{0}},
		"a mapped prefix":  {InsecureAllow: prefixes("::ffff:10.0.0.0/104")},
		"no prefix":        {InsecureAllow: []netip.Prefix{{}}},
		"a URL as host":    {InsecureHTTP: []string{"http://hooks.example"}},
		"a path":           {InsecureHTTP: []string{"hooks.example/a"}},
		"a user":           {InsecureHTTP: []string{"a@hooks.example"}},
		"a number as host": {InsecureHTTP: []string{"2130706433"}},
		"nothing as host":  {InsecureHTTP: []string{""}},
		"redirects":        {Redirects: 4},
		"a timeout":        {Timeout: -1},
		"a length":         {MaxResponse: -1},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// site is a server with TLS on loopback, with a certificate for example.com.
func site(t *testing.T, h http.HandlerFunc) (s *httptest.Server, port uint16, roots *x509.CertPool) {
	t.Helper()
	s = httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	roots = x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s, netip.MustParseAddrPort(s.Listener.Addr().String()).Port(), roots
}

func TestTheCertificateIsVerified(t *testing.T) {
	asked := new(atomic.Int64)
	_, port, roots := site(t, func(w http.ResponseWriter, _ *http.Request) { asked.Add(1) })
	c := Config{Ports: []uint16{port}, InsecureAllow: prefixes("127.0.0.1/32"), Resolver: resolver(t, fixed(map[string][]string{"example.com": {"127.0.0.1"}, "other.example": {"127.0.0.1"}}))}
	if _, _, err := get(t, client(t, c), fmt.Sprintf("https://example.com:%d/", port)); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("an unknown authority: %v", err)
	}
	c.Roots = roots
	if _, _, err := get(t, client(t, c), fmt.Sprintf("https://other.example:%d/", port)); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("another's certificate: %v", err)
	}
	if asked.Load() != 0 {
		t.Error("a request was sent")
	}
	if status, _, err := get(t, client(t, c), fmt.Sprintf("https://example.com:%d/", port)); err != nil || status != http.StatusOK {
		t.Errorf("the right one: %d, %v", status, err)
	}
}

func TestRedirectsAreCheckedAndCounted(t *testing.T) {
	port, count := counter(t)
	var s *httptest.Server
	var at uint16
	var roots *x509.CertPool
	var told atomic.Int64
	s, at, roots = site(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Referer") != "" {
			told.Add(1)
		}
		switch r.URL.Path {
		case "/inside":
			http.Redirect(w, r, fmt.Sprintf("https://127.0.0.1:%d/", port), http.StatusFound)
		case "/metadata":
			http.Redirect(w, r, fmt.Sprintf("https://169.254.169.254:%d/latest", at), http.StatusFound)
		case "/clear":
			http.Redirect(w, r, fmt.Sprintf("http://example.com:%d/", at), http.StatusFound)
		case "/broken":
			w.Header().Set("Location", "https://[secret-of-the-url/%zz")
			w.WriteHeader(http.StatusFound)
		case "/3", "/2", "/1":
			http.Redirect(w, r, fmt.Sprintf("%s/%c?from=%s", s.URL, r.URL.Path[1]-1, "secret"), http.StatusFound)
		case "/4":
			http.Redirect(w, r, s.URL+"/3", http.StatusFound)
		}
	})
	c := Config{Ports: []uint16{at, port}, InsecureAllow: prefixes("127.0.0.1/32"), Roots: roots, Redirects: 3, Own: func() []netip.AddrPort {
		return []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), port)}
	}}
	for _, path := range []string{"/inside", "/metadata", "/clear"} {
		_, _, err := get(t, client(t, c), s.URL+path)
		refused(t, path, err)
	}
	for path, want := range map[string]int{"/3": http.StatusOK, "/4": http.StatusFound, "/broken": http.StatusFound} {
		if status, _, err := get(t, client(t, c), s.URL+path); err != nil || status != want {
			t.Errorf("%s: %d, %v", path, status, err)
		}
	}
	c.Redirects = 0
	if status, _, err := get(t, client(t, c), s.URL+"/1"); err != nil || status != http.StatusFound {
		t.Errorf("no redirects: %d, %v", status, err)
	}
	if told.Load() > 0 {
		t.Error("the former URL was told")
	}
	if count.Load() != 0 {
		t.Error("there was a connection")
	}
}

func TestLongAndSlowAnswersAreCutOff(t *testing.T) {
	hang := make(chan struct{})
	s, port, roots := site(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/fits":
			_, _ = w.Write(make([]byte, 1000))
		case "/long":
			for range 1 << 20 { // 1 GiB
				if _, err := w.Write(make([]byte, 1024)); err != nil {
					return
				}
			}
		case "/header":
			w.Header().Set("Long", strings.Repeat("x", 1<<20))
		case "/hang":
			<-hang
		case "/drip":
			_ = http.NewResponseController(w).Flush()
			<-hang
		}
	})
	defer close(hang)
	c := Config{Ports: []uint16{port}, InsecureAllow: prefixes("127.0.0.1/32"), Roots: roots, MaxResponse: 1000, Timeout: 20 * time.Second}
	if _, body, err := get(t, client(t, c), s.URL+"/fits"); err != nil || len(body) != 1000 {
		t.Errorf("what just fits: %d bytes, %v", len(body), err)
	}
	if _, body, err := get(t, client(t, c), s.URL+"/long"); !errors.Is(err, ErrTooLong) || len(body) != 1000 {
		t.Errorf("1 GiB: %d bytes, %v", len(body), err)
	}
	if _, _, err := get(t, client(t, c), s.URL+"/header"); err == nil {
		t.Error("a header of 1 MiB is read")
	}
	c.Timeout = 100 * time.Millisecond
	if _, _, err := get(t, client(t, c), s.URL+"/hang"); err == nil || !strings.Contains(err.Error(), "did not answer within 100ms") {
		t.Errorf("one that hangs: %v", err)
	}
	if _, _, err := get(t, client(t, c), s.URL+"/drip"); err == nil {
		t.Error("one that hangs in its body is waited for")
	}
}

// Errors go to logs and to people who may not know the URL.
func TestErrorsHaveNothingOfTheURLButItsHost(t *testing.T) {
	s, port, roots := site(t, func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = fmt.Fprintf(conn, "you asked for %s\r\n\r\n", r.RequestURI)
		conn.Close()
	})
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := netip.MustParseAddrPort(closed.Addr().String()).Port()
	closed.Close()
	c := client(t, Config{Ports: []uint16{port, nobody, 443}, InsecureAllow: prefixes("127.0.0.1/32"), Roots: roots, Timeout: 10 * time.Second, Resolver: resolver(t, fixed(nil))})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for address, ctx := range map[string]context.Context{
		s.URL + "/secret?token=secret":                                  t.Context(), // it answers with no HTTP
		fmt.Sprintf("https://127.0.0.1:%d/secret?token=secret", nobody): t.Context(),
		"https://user:secret@hooks.example/secret":                      t.Context(),
		"https://secret@127.0.0.1/secret":                               t.Context(),
		"https://127.0.0.9/secret?secret#secret":                        t.Context(),
		"http://hooks.example/secret":                                   t.Context(),
		"https://unknown.example/secret":                                t.Context(),
		"https://169.254.169.254/secret":                                t.Context(),
		"ftp://hooks.example/secret":                                    t.Context(),
		s.URL + "/secret":                                               ended,
	} {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader("secret"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(r)
		if err == nil {
			resp.Body.Close()
			t.Errorf("%s was answered", address)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%v", err)
		}
	}
}

func TestTheEnvironmentsProxyAndCookiesAreNotUsed(t *testing.T) {
	port, count := counter(t)
	t.Setenv("HTTPS_PROXY", fmt.Sprintf("http://127.0.0.1:%d", port))
	t.Setenv("ALL_PROXY", fmt.Sprintf("http://127.0.0.1:%d", port))
	var cookies atomic.Int64
	s, at, roots := site(t, func(w http.ResponseWriter, r *http.Request) {
		cookies.Add(int64(len(r.Cookies())))
		http.SetCookie(w, &http.Cookie{Name: "a", Value: "b", Path: "/"})
		w.Header().Set("Alt-Svc", fmt.Sprintf(`h2=":%d"; ma=3600, h3=":%d"; ma=3600`, port, port))
	})
	c := client(t, Config{Ports: []uint16{at}, InsecureAllow: prefixes("127.0.0.1/32"), Roots: roots})
	for range 2 {
		if _, _, err := get(t, c, s.URL); err != nil {
			t.Fatal(err)
		}
		c.CloseIdle()
	}
	if cookies.Load() != 0 || count.Load() != 0 {
		t.Errorf("%d cookies were sent, and somebody else was asked %d times", cookies.Load(), count.Load())
	}
	if c.base.Proxy != nil {
		t.Error("there is a proxy")
	}
}

func FuzzCheck(f *testing.F) {
	for _, seed := range []string{"https://hooks.example/a", "https://[::1%25lo]:443/", "http://0x7f.1/", "https://a@b/", "https:///", "https://[127.0.0.1]/"} {
		f.Add(seed)
	}
	c, err := New(Config{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := url.Parse(raw)
		if err != nil || c.Check(u) != nil {
			return
		}
		if u.Scheme != "https" || u.User != nil || u.Port() != "" && u.Port() != "443" {
			t.Errorf("%q is accepted", raw)
		}
		if ip, err := netip.ParseAddr(u.Hostname()); err == nil && ip.Zone() != "" {
			t.Errorf("%q is accepted", raw)
		}
	})
}

func FuzzJudge(f *testing.F) {
	for _, seed := range []string{"::1", "::ffff:7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "fd00:ec2::254"} {
		ip := netip.MustParseAddr(seed).As16()
		f.Add(ip[:])
	}
	c, err := New(Config{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ip, ok := netip.AddrFromSlice(b)
		if !ok || c.guard.judge(netip.AddrPortFrom(ip, 443)) != nil {
			return
		}
		// What the standard library knows to be local is refused in any form.
		for _, a := range append(within(plain(ip)), plain(ip)) {
			if a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() {
				t.Errorf("%s is accepted", ip)
			}
		}
	})
}
