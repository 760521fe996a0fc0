package extension

import (
	"encoding/json"
	"slices"

	"github.com/tollgate402/tollgate/payment"
)

// dynamic are the members of info that a seller makes anew for every
// challenge, so that no echo can be held against them.
var dynamic = map[string][]string{
	SignInWithX:  {"nonce", "issuedAt", "expirationTime"},
	OfferReceipt: {"offers"},
}

// builderCode is an extension to which payers may add service codes. It is not
// made here.
const builderCode = "builder-code"

// maxServiceCodes is how many service codes an echo may have.
const maxServiceCodes = 10

// An Advertised is what a challenge says in its extensions, for comparison
// with what payers echo. It is immutable; nil advertises nothing.
type Advertised struct {
	names []string
	infos []value
}

// Advertise reads the extensions of a seller's own challenge.
func Advertise(extensions json.RawMessage) (*Advertised, error) {
	if len(extensions) == 0 {
		return nil, nil
	}
	all, err := parse(extensions, "extensions", payment.MaxChallenge)
	if err != nil {
		return nil, err
	}
	a := &Advertised{}
	for i, name := range all.names {
		info, _ := all.items[i].member("info")
		a.names, a.infos = append(a.names, name), append(a.infos, info)
	}
	return a, nil
}

// Check reports whether what a payer echoes is what was advertised: of each
// extension that it echoes, the advertised info must be there, and may have
// been added to. Nothing needs to be echoed, and what was not advertised means
// nothing. It returns a *payment.InvalidError, or a
// *payment.MalformedError for what cannot be read.
func (a *Advertised) Check(echoed json.RawMessage) error {
	if a == nil || len(echoed) == 0 {
		return nil
	}
	theirs, err := parse(echoed, "extensions", payment.MaxBody)
	if err != nil {
		return malformed(err)
	}
	for i, name := range a.names {
		extension, ok := theirs.member(name)
		if !ok || extension.kind == null {
			continue
		}
		echo, _ := extension.member("info")
		if !echoes(name, a.infos[i], echo) {
			return payment.Invalid(payment.ExtensionEchoMismatch, "the extension "+name+" must be echoed as it was offered")
		}
	}
	return nil
}

// echoes reports whether an echo has everything of the info of an extension.
func echoes(name string, info, echo value) bool {
	if info.kind != object || echo.kind != object {
		return info.equal(echo)
	}
	if name == builderCode {
		if _, ours := info.member("a"); !ours {
			if _, invented := echo.member("a"); invented {
				return false
			}
		}
	}
	for i, member := range info.names {
		if slices.Contains(dynamic[name], member) {
			continue
		}
		other, ok := echo.member(member)
		switch {
		case !ok:
			return false
		case name == builderCode && member == "s" && info.items[i].kind == array && other.kind == array:
			if !begins(info.items[i].items, other.items) || len(other.items) > maxServiceCodes {
				return false
			}
		case !info.items[i].within(other):
			return false
		}
	}
	return true
}

// begins reports whether list starts with start.
func begins(start, list []value) bool {
	return len(start) <= len(list) && slices.EqualFunc(start, list[:len(start)], value.equal)
}
