package egress

import (
	"encoding/binary"
	"net/netip"
)

// A block is a range of addresses where no receiver of ours can be.
type block struct {
	prefix netip.Prefix
	what   string // for the error
}

func blocks(list ...[2]string) []block {
	made := make([]block, 0, len(list))
	for _, b := range list {
		made = append(made, block{netip.MustParsePrefix(b[0]), b[1]})
	}
	return made
}

// special is IANA's registries of special-purpose addresses, IPv4 and IPv6
// (RFC 6890, RFC 8190), with the multicast ranges. Those that the registries
// call globally reachable are here, too: they are protocols' own, and nobody
// receives HTTP there. More specific entries come first, so that the error
// names them.
//
// NAT64's 64:ff9b::/96 (RFC 6052) and the mapped ::ffff:0:0/96 (RFC 4291,
// section 2.5.5.2) are left out: they are judged by the address within.
var special = blocks(
	// https://www.iana.org/assignments/iana-ipv4-special-registry
	[2]string{"0.0.0.0/32", "this host (RFC 1122, section 3.2.1.3)"},
	[2]string{"0.0.0.0/8", "this network (RFC 791, section 3.2)"},
	[2]string{"10.0.0.0/8", "private use (RFC 1918)"},
	[2]string{"100.64.0.0/10", "shared address space (RFC 6598)"},
	[2]string{"127.0.0.0/8", "loopback (RFC 1122, section 3.2.1.3)"},
	[2]string{"169.254.0.0/16", "link local (RFC 3927)"},
	[2]string{"172.16.0.0/12", "private use (RFC 1918)"},
	[2]string{"192.0.0.0/29", "IPv4 service continuity (RFC 7335)"},
	[2]string{"192.0.0.8/32", "IPv4 dummy address (RFC 7600)"},
	[2]string{"192.0.0.9/32", "port control protocol anycast (RFC 7723)"},
	[2]string{"192.0.0.10/32", "TURN anycast (RFC 8155)"},
	[2]string{"192.0.0.170/31", "NAT64 and DNS64 discovery (RFC 8880, RFC 7050)"},
	[2]string{"192.0.0.0/24", "IETF protocol assignments (RFC 6890, section 2.1)"},
	[2]string{"192.0.2.0/24", "documentation (RFC 5737)"},
	[2]string{"192.31.196.0/24", "AS112 (RFC 7535)"},
	[2]string{"192.52.193.0/24", "automatic multicast tunnelling (RFC 7450)"},
	[2]string{"192.88.99.2/32", "6a44 relay anycast (RFC 6751)"},
	[2]string{"192.88.99.0/24", "6to4 relay anycast (RFC 7526)"},
	[2]string{"192.168.0.0/16", "private use (RFC 1918)"},
	[2]string{"192.175.48.0/24", "AS112 (RFC 7534)"},
	[2]string{"198.18.0.0/15", "benchmarking (RFC 2544)"},
	[2]string{"198.51.100.0/24", "documentation (RFC 5737)"},
	[2]string{"203.0.113.0/24", "documentation (RFC 5737)"},
	[2]string{"224.0.0.0/4", "multicast (RFC 5771)"},
	[2]string{"255.255.255.255/32", "limited broadcast (RFC 919, section 7)"},
	[2]string{"240.0.0.0/4", "reserved (RFC 1112, section 4)"},

	// https://www.iana.org/assignments/iana-ipv6-special-registry
	[2]string{"::/128", "unspecified (RFC 4291)"},
	[2]string{"::1/128", "loopback (RFC 4291)"},
	[2]string{"64:ff9b:1::/48", "local NAT64 (RFC 8215)"},
	[2]string{"100::/64", "discard only (RFC 6666)"},
	[2]string{"100:0:0:1::/64", "IPv6 dummy prefix (RFC 9780)"},
	[2]string{"2001::/32", "Teredo (RFC 4380)"},
	[2]string{"2001:1::1/128", "port control protocol anycast (RFC 7723)"},
	[2]string{"2001:1::2/128", "TURN anycast (RFC 8155)"},
	[2]string{"2001:1::3/128", "DNS-SD registration anycast (RFC 9665)"},
	[2]string{"2001:2::/48", "benchmarking (RFC 5180)"},
	[2]string{"2001:3::/32", "automatic multicast tunnelling (RFC 7450)"},
	[2]string{"2001:4:112::/48", "AS112 (RFC 7535)"},
	[2]string{"2001:10::/28", "ORCHID (RFC 4843)"},
	[2]string{"2001:20::/28", "ORCHIDv2 (RFC 7343)"},
	[2]string{"2001:30::/28", "drone remote identification (RFC 9374)"},
	[2]string{"2001::/23", "IETF protocol assignments (RFC 2928)"},
	[2]string{"2001:db8::/32", "documentation (RFC 3849)"},
	[2]string{"2002::/16", "6to4 (RFC 3056, RFC 7526)"},
	[2]string{"2620:4f:8000::/48", "AS112 (RFC 7534)"},
	[2]string{"3ffe::/16", "the returned 6bone (RFC 3701)"},
	[2]string{"3fff::/20", "documentation (RFC 9637)"},
	[2]string{"5f00::/16", "SRv6 segments (RFC 9602)"},
	[2]string{"fc00::/7", "unique local (RFC 4193)"},
	[2]string{"fe80::/10", "link local (RFC 4291)"},
	[2]string{"fec0::/10", "site local (RFC 3879)"},
	[2]string{"ff00::/8", "multicast (RFC 4291)"},
)

// metadata is where clouds tell a machine its credentials. No setting opens
// these.
var metadata = blocks(
	[2]string{"169.254.169.254/32", "AWS, Google, Azure, OpenStack and others"},
	[2]string{"169.254.170.2/32", "AWS ECS"},
	[2]string{"169.254.170.23/32", "AWS EKS"},
	[2]string{"169.254.42.42/32", "Scaleway"},
	[2]string{"169.254.0.23/32", "Tencent Cloud"},
	[2]string{"169.254.10.10/32", "Tencent Cloud"},
	[2]string{"100.100.100.200/32", "Alibaba Cloud"},
	[2]string{"168.63.129.16/32", "Azure"},
	[2]string{"192.0.0.192/32", "Oracle Cloud"},
	[2]string{"fd00:ec2::254/128", "AWS"},
	[2]string{"fd00:ec2::23/128", "AWS EKS"},
	[2]string{"fd20:ce::254/128", "Google"},
	[2]string{"fd00:42::42/128", "Scaleway"},
	[2]string{"fd00:c1::a9fe:a9fe/128", "Oracle Cloud"},
	[2]string{"fe80::a9fe:a9fe/128", "OpenStack"},
)

var (
	globalUnicast = netip.MustParsePrefix("2000::/3") // all that IANA gives out
	nat64         = netip.MustParsePrefix("64:ff9b::/96")
	localNAT64    = netip.MustParsePrefix("64:ff9b:1::/48")
	sixToFour     = netip.MustParsePrefix("2002::/16")
	teredo        = netip.MustParsePrefix("2001::/32")
	compatible    = netip.MustParsePrefix("::/96")           // RFC 4291, section 2.5.5.1
	translated    = netip.MustParsePrefix("::ffff:0:0:0/96") // RFC 2765, section 2.1
)

// find returns the block that has an address, or nil.
func find(list []block, ip netip.Addr) *block {
	for i := range list {
		if list[i].prefix.Contains(ip) {
			return &list[i]
		}
	}
	return nil
}

// within returns the IPv4 addresses that an IPv6 address may lead to: something
// on the way, or the host itself, may turn a packet for the one into a packet
// for the other.
func within(ip netip.Addr) []netip.Addr {
	if ip.Is4() {
		return nil
	}
	b := ip.As16()
	four := func(at ...int) netip.Addr {
		return netip.AddrFrom4([4]byte{b[at[0]], b[at[1]], b[at[2]], b[at[3]]})
	}
	last := four(12, 13, 14, 15)
	switch {
	case nat64.Contains(ip), compatible.Contains(ip), translated.Contains(ip):
		return []netip.Addr{last}
	case localNAT64.Contains(ip):
		// A network may use any part of it, so the address may be in any of the
		// places of RFC 6052, section 2.2, for prefixes of 48, 56, 64 and 96 bits.
		return []netip.Addr{four(6, 7, 9, 10), four(7, 9, 10, 11), four(9, 10, 11, 12), last}
	case sixToFour.Contains(ip):
		return []netip.Addr{four(2, 3, 4, 5)}
	case teredo.Contains(ip): // RFC 4380, section 4: the server, and the client with all bits turned
		return []netip.Addr{four(4, 5, 6, 7), netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})}
	case isatap(&b):
		return []netip.Addr{last}
	}
	return nil
}

// isatap reports whether the lower half of an address is an interface
// identifier with an IPv4 address in it (RFC 5214, section 6.1).
func isatap(b *[16]byte) bool {
	return binary.BigEndian.Uint32(b[8:12])&^0x03000000 == 0x00005efe
}

// plain returns an address without its zone, and as IPv4 if it is mapped. A
// Prefix contains no address that has a zone, and no mapped one.
func plain(ip netip.Addr) netip.Addr { return ip.WithZone("").Unmap() }
