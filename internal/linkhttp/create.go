package linkhttp

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/tollgate402/tollgate/internal/strictjson"
	"github.com/tollgate402/tollgate/payment/link"
)

// create makes a link.
func (m *Merchant) create(o *order) (*Reply, error) {
	key, err := onceKey(o.Request)
	if err != nil {
		return nil, err
	}
	doc, err := o.body("amount", "description", "expiresInHours", "maxUses", "customFields", "successMessage", "successUrl", "opens", "metadata")
	if err != nil {
		return nil, err
	}
	terms, err := readTerms(doc)
	if err != nil {
		return nil, malformed(err)
	}
	terms.Merchant = o.merchant
	offers, unpayable := m.Offers(terms.Amount)
	terms.Offers = offers
	terms, err = terms.Check(m.Redirects)
	if bad, ok := errors.AsType[*link.TermsError](err); ok && (bad.Member != "network" || unpayable == nil) {
		return nil, invalid(bad.Member, bad.Problem)
	}
	if unpayable != nil {
		return nil, invalid("amount", "cannot be asked for here: "+unpayable.Error())
	}
	if err != nil {
		return nil, err
	}
	l, before, err := m.Links.CreateOnce(o.Context(), terms, key)
	if errors.Is(err, link.ErrKeyUsed) {
		return nil, &RequestError{
			Status: http.StatusConflict, Code: OnceKeyReused, Param: headerOnce,
			Message: "this " + headerOnce + " has made a link with other terms: send the terms that it was first sent with, or another key for another link",
		}
	}
	if err != nil {
		return nil, err
	}
	status := http.StatusCreated
	if before {
		status = http.StatusOK
	}
	reply, err := replyWith(status, m.Site.linkDoc(m.Site.origin(o.Request), l))
	if err != nil {
		return nil, err
	}
	reply.Location, reply.Replayed = linksPath+"/"+string(l.ID), before
	return reply, nil
}

// onceKey returns the idempotency key of a request, or "" if it has none.
func onceKey(r *http.Request) (string, error) {
	switch keys := r.Header.Values(headerOnce); {
	case len(keys) == 0:
		return "", nil
	case len(keys) > 1, keys[0] == "", len(keys[0]) > maxOnceKey:
		return "", invalid(headerOnce, fmt.Sprintf("must be given once, with 1 to %d characters", maxOnceKey))
	default:
		return keys[0], nil
	}
}

// readTerms reads what a merchant says of a link. Whether it is within the
// limits Terms.Check says.
func readTerms(doc strictjson.Object) (t link.Terms, err error) {
	for _, name := range []string{"amount", "description"} {
		if !doc.Has(name) {
			return t, &RequestError{Status: http.StatusBadRequest, Code: MissingParameter, Message: name + " is missing: add it", Param: name}
		}
	}
	if t.Amount, err = readAmount(doc); err != nil {
		return t, err
	}
	for _, text := range []struct {
		name string
		into *string
	}{{"description", &t.Description}, {"successMessage", &t.Message}, {"successUrl", &t.Redirect}, {"opens", &t.Opens}} {
		if *text.into, _, err = doc.OptionalText(text.name); err != nil {
			return t, err
		}
	}
	hours, err := whole(doc, "expiresInHours", int(link.MaxLife/time.Hour))
	if err != nil {
		return t, err
	}
	t.Life = time.Duration(hours) * time.Hour
	uses, err := whole(doc, "maxUses", link.MaxUses)
	if err != nil {
		return t, err
	}
	t.Uses = uint32(uses) //nolint:gosec // it is at most MaxUses
	if t.Fields, err = readFields(doc); err != nil {
		return t, err
	}
	t.Metadata, err = readMetadata(doc)
	return t, err
}

// readAmount returns an amount as it is written, whether as a number or in a
// text: no rounding of anybody's can change it. Zeros at its end that are
// more than there are decimals are left out.
func readAmount(doc strictjson.Object) (string, error) {
	raw, _ := doc.Value("amount")
	amount := string(raw)
	if strings.HasPrefix(amount, `"`) {
		var err error
		if amount, err = doc.Text("amount"); err != nil {
			return "", err
		}
	}
	units, fraction, _ := strings.Cut(amount, ".")
	for _, c := range []byte(units + fraction) {
		if c < '0' || c > '9' {
			return "", doc.Wrong("amount", "must be a decimal number without sign and exponent, such as 12.50")
		}
	}
	if len(fraction) > link.MaxDecimals && strings.Trim(fraction[link.MaxDecimals:], "0") == "" {
		amount = units + "." + fraction[:link.MaxDecimals]
	}
	return amount, nil
}

// whole reads a whole number from 1 to most. It returns 0 where there is none.
func whole(doc strictjson.Object, name string, most int) (int, error) {
	raw, ok := doc.Value(name)
	if !ok {
		return 0, nil
	}
	n, err := strconv.ParseUint(string(raw), 10, 31)
	if err != nil || n < 1 || n > uint64(most) { //nolint:gosec // most is positive
		return 0, doc.Wrong(name, fmt.Sprintf("must be a whole number from 1 to %d, without decimals", most))
	}
	return int(n), nil
}

func readFields(doc strictjson.Object) ([]link.Field, error) {
	if !doc.Has("customFields") {
		return nil, nil
	}
	list, err := doc.Objects("customFields", link.MaxFields)
	if err != nil {
		return nil, err
	}
	var fields []link.Field
	for _, one := range list {
		if err := known(one, "name", "label", "required", "maxlength"); err != nil {
			return nil, err
		}
		var f link.Field
		if f.Name, err = one.Text("name"); err != nil {
			return nil, err
		}
		if f.Label, err = one.Text("label"); err != nil {
			return nil, err
		}
		switch raw, ok := one.Value("required"); {
		case ok && string(raw) == "true":
			f.Required = true
		case ok && string(raw) != "false":
			return nil, one.Wrong("required", "must be true or false")
		}
		if f.Max, err = whole(one, "maxlength", link.MaxField); err != nil {
			return nil, err
		}
		fields = append(fields, f)
	}
	return fields, nil
}

func readMetadata(doc strictjson.Object) (map[string]string, error) {
	entries, ok, err := doc.OptionalObject("metadata")
	if err != nil || !ok {
		return nil, err
	}
	m := map[string]string{}
	for _, name := range entries.Names() {
		if m[name], err = entries.Text(name); err != nil {
			return nil, err
		}
	}
	return m, nil
}
