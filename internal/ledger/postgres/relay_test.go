package postgres

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

// A relay is the way to a server, which can be cut.
type relay struct {
	listener net.Listener
	network  string
	server   string

	mu    sync.Mutex
	state relayState
	conns map[net.Conn]struct{} // both ends of what is open
	all   sync.WaitGroup
}

type relayState int

const (
	whole  relayState = iota
	cut               // connections break, and new ones are closed at once
	silent            // connections break, and new ones are accepted and get no answer
)

// newRelay returns a relay to the server that url names, and the url of the relay.
func newRelay(t *testing.T, serverURL string) (*relay, string) {
	t.Helper()
	config, err := pgx.ParseConfig(serverURL)
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{conns: make(map[net.Conn]struct{})}
	r.network, r.server = pgxNetwork(config)
	if r.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	r.all.Go(r.accept)
	t.Cleanup(func() {
		_ = r.listener.Close()
		r.set(cut)
		r.all.Wait()
	})
	u := url.URL{Scheme: "postgres", User: url.User(config.User), Host: r.listener.Addr().String(), Path: config.Database, RawQuery: "sslmode=disable"}
	return r, u.String()
}

func (r *relay) accept() {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		state := r.state
		if state != cut {
			r.conns[client] = struct{}{}
		}
		r.mu.Unlock()
		if state == cut {
			_ = client.Close()
		}
		if state == whole {
			r.all.Go(func() { r.pass(client) })
		}
	}
}

func (r *relay) pass(client net.Conn) {
	server, err := net.Dial(r.network, r.server)
	if err != nil {
		_ = client.Close()
		return
	}
	r.mu.Lock()
	if r.state != whole {
		_ = server.Close()
	}
	r.conns[server] = struct{}{}
	r.mu.Unlock()
	var both sync.WaitGroup
	for from, to := range map[net.Conn]net.Conn{client: server, server: client} {
		both.Go(func() {
			_, _ = io.Copy(to, from)
			_ = to.Close()
			_ = from.Close()
		})
	}
	both.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, client)
	delete(r.conns, server)
}

// set changes what becomes of connections. All that are open break.
func (r *relay) set(state relayState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state = state
	for c := range r.conns {
		_ = c.Close()
	}
	clear(r.conns)
}

func pgxNetwork(config *pgx.ConnConfig) (network, address string) {
	if config.Host[0] == '/' {
		return "unix", config.Host + "/.s.PGSQL.5432"
	}
	return "tcp", net.JoinHostPort(config.Host, "5432")
}
