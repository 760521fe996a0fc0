package egress

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// resolver returns one that asks nobody but answer, which gets names in lower
// case and without the dot at their end.
func resolver(t *testing.T, answer func(name string) []netip.Addr) *net.Resolver {
	t.Helper()
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go serveDNS(theirs, answer) // ends when the resolver closes its side
		return ours, nil
	}}
}

// fixed answers with the addresses of a name, and for the others with none.
func fixed(names map[string][]string) func(string) []netip.Addr {
	return func(name string) []netip.Addr {
		var list []netip.Addr
		for _, a := range names[name] {
			list = append(list, netip.MustParseAddr(a))
		}
		return list
	}
}

// serveDNS answers the queries on a connection, which are framed as over TCP
// (RFC 1035, sections 4.1 and 4.2.2).
func serveDNS(c net.Conn, answer func(string) []netip.Addr) {
	defer c.Close()
	for {
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		var labels []string
		at := 12
		for query[at] != 0 {
			n := int(query[at])
			labels = append(labels, string(query[at+1:at+1+n]))
			at += 1 + n
		}
		at++
		kind := binary.BigEndian.Uint16(query[at:])
		reply := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, query[12:at+4]...)
		for _, ip := range answer(strings.ToLower(strings.Join(labels, "."))) {
			const v4, v6 = 1, 28
			if (kind != v4 || !ip.Is4()) && (kind != v6 || !ip.Is6()) {
				continue
			}
			reply[7]++
			reply = append(reply, 0xc0, 12, 0, byte(kind), 0, 1, 0, 0, 0, 0, 0, byte(ip.BitLen()/8))
			reply = append(reply, ip.AsSlice()...)
		}
		reply = append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)
		if _, err := c.Write(reply); err != nil {
			return
		}
	}
}
