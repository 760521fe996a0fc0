package link

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tollgate402/tollgate/payment"
)

// The limits of what a link says.
const (
	MaxAmount      = 1_000_000 // whole units of the token
	MaxDecimals    = 6
	MaxDescription = 500 // characters
	MaxMessage     = 500 // characters
	MaxUses        = 1_000_000
	MaxFields      = 10
	MaxField       = 500 // characters of what a payer fills in
	MaxMetadata    = 50  // entries, with keys of 40 and values of 500 characters at most

	MinLife     = time.Hour
	MaxLife     = 90 * 24 * time.Hour
	DefaultLife = 30 * 24 * time.Hour
)

// A Status says what can be done with a link.
type Status string

const (
	Active   Status = "ACTIVE"   // it can be paid
	Pending  Status = "PENDING"  // a payment has claimed it, and may settle; the claim outlives the link's expiry
	Paid     Status = "PAID"     // all its uses are paid
	Expired  Status = "EXPIRED"  // its time is over
	Disabled Status = "DISABLED" // its merchant has ended it
)

// ParseStatus reads a status in upper or lower case.
func ParseStatus(s string) (Status, error) {
	switch status := Status(strings.ToUpper(s)); status {
	case Active, Pending, Paid, Expired, Disabled:
		return status, nil
	}
	return "", fmt.Errorf("status %q must be ACTIVE, PENDING, PAID, EXPIRED or DISABLED", s)
}

// A Field is something that the payer fills in.
type Field struct {
	Name     string `json:"name"`  // 1 to 40 of a-z, 0-9 and _
	Label    string `json:"label"` // 1 to 100 characters, for people
	Required bool   `json:"required,omitempty"`
	Max      int    `json:"max,omitempty"` // characters; 0 is MaxField
}

// Terms are what a merchant says of a link. They never change.
type Terms struct {
	// Merchant is whose link it is: 1 to 64 of a-z, A-Z, 0-9, _, - and point.
	Merchant string

	// Amount is what it costs, in whole units of the tokens, such as "12.50".
	Amount string

	// Offers are the ways to pay, at least one, of which each asks for Amount.
	Offers []payment.Offer

	Description string
	Life        time.Duration // until it expires; 0 is DefaultLife
	Uses        uint32        // how often it can be paid; 0 is once
	Fields      []Field
	Message     string // for whoever has paid
	Redirect    string // where a browser goes then; an https URL
	Opens       string // the path of a priced route, which each payment opens once
	Metadata    map[string]string
}

// Problems of terms are about one member, as the API spells it.
type TermsError struct {
	Member  string
	Problem string
}

func (e *TermsError) Error() string { return e.Member + " " + e.Problem }

// Check returns terms with the defaults filled in, or a *TermsError.
// redirects are the hosts that a link may lead to.
func (t Terms) Check(redirects []string) (Terms, error) {
	for _, c := range []struct {
		member string
		err    error
	}{
		{"merchant", CheckMerchant(t.Merchant)},
		{"amount", checkAmount(t.Amount)},
		{"description", checkText(t.Description, 1, MaxDescription)},
		{"successMessage", checkText(t.Message, 0, MaxMessage)},
		{"successUrl", checkRedirect(t.Redirect, redirects)},
		{"opens", checkPath(t.Opens)},
		{"customFields", checkFields(t.Fields)},
		{"metadata", checkMetadata(t.Metadata)},
	} {
		if c.err != nil {
			return t, &TermsError{c.member, c.err.Error()}
		}
	}
	if t.Life == 0 {
		t.Life = DefaultLife
	}
	if t.Life < MinLife || t.Life > MaxLife {
		return t, &TermsError{"expiresInHours", "must be 1 to 2160 hours, which is 90 days"}
	}
	if t.Uses == 0 {
		t.Uses = 1
	}
	if t.Uses > MaxUses {
		return t, &TermsError{"maxUses", "must be 1 to 1000000"}
	}
	if len(t.Offers) == 0 {
		return t, &TermsError{"network", "leaves no way to pay"}
	}
	return t, nil
}

const merchantSigns = "._-ABCDEFGHIJKLMNOPQRSTUVWXYZ"

// CheckMerchant says what is wrong with the name of a merchant.
func CheckMerchant(name string) error { return checkName(name, 64, merchantSigns) }

func checkName(s string, most int, beside string) error {
	if s == "" || len(s) > most {
		return fmt.Errorf("must have 1 to %d characters", most)
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune(beside, rune(c)) {
			return fmt.Errorf("must be of a-z, 0-9 and %s", beside)
		}
	}
	return nil
}

// checkAmount says what is wrong with an amount in whole units.
func checkAmount(s string) error {
	whole, fraction, point := strings.Cut(s, ".")
	for _, c := range whole + fraction {
		if c < '0' || c > '9' {
			return errors.New("must be a decimal number, such as 12.50")
		}
	}
	switch {
	case whole == "" || point && fraction == "" || len(whole) > 1 && whole[0] == '0':
		return errors.New("must be a decimal number, such as 12.50")
	case len(strings.TrimRight(fraction, "0")) > MaxDecimals:
		return errors.New("must have at most 6 decimals")
	case strings.Trim(whole+fraction, "0") == "":
		return errors.New("must be more than 0")
	case len(whole) > 7 || len(whole) == 7 && (whole > "1000000" || whole == "1000000" && strings.Trim(fraction, "0") != ""):
		return errors.New("must be at most 1000000")
	}
	return nil
}

// checkText allows what people write, in lines, and nothing that could steer
// whatever shows it.
func checkText(s string, least, most int) error {
	n := utf8.RuneCountInString(s)
	switch {
	case !utf8.ValidString(s):
		return errors.New("must be UTF-8")
	case n > most || n < least || least > 0 && strings.TrimSpace(s) == "":
		return fmt.Errorf("must have %d to %d characters", least, most)
	}
	for _, c := range s {
		if unicode.IsControl(c) && c != '\n' && c != '\r' && c != '\t' || steers(c) {
			return errors.New("must not have control characters")
		}
	}
	return nil
}

// steers reports characters that change the direction of the text around them,
// with which one thing can be made to look like another.
func steers(c rune) bool {
	return c >= '\u202a' && c <= '\u202e' || c >= '\u2066' && c <= '\u2069'
}

func checkRedirect(s string, hosts []string) error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil || len(s) > 2000 || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.ContainsFunc(s, unicode.IsControl) {
		return errors.New("must be an https URL without a user")
	}
	if !slices.Contains(hosts, strings.ToLower(u.Host)) {
		return fmt.Errorf("leads to %s, which is none of the hosts that links may lead to: the operator lists them with \"redirects %s\"", u.Host, u.Host)
	}
	return nil
}

func checkPath(s string) error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil || len(s) > 1000 || !strings.HasPrefix(s, "/") || strings.HasPrefix(s, "//") || u.Host != "" || u.Fragment != "" || strings.ContainsFunc(s, unicode.IsControl) {
		return errors.New("must be a path on this site, such as /reports/7")
	}
	return nil
}

func checkFields(list []Field) error {
	if len(list) > MaxFields {
		return fmt.Errorf("are %d, the most is %d", len(list), MaxFields)
	}
	seen := map[string]bool{}
	for _, f := range list {
		if err := checkName(f.Name, 40, "_"); err != nil {
			return fmt.Errorf("have a name that %w", err)
		}
		if err := checkText(f.Label, 1, 100); err != nil {
			return fmt.Errorf("have a label that %w", err)
		}
		if f.Max < 0 || f.Max > MaxField {
			return fmt.Errorf("have a max that is not 0 to %d", MaxField)
		}
		if seen[f.Name] {
			return fmt.Errorf("have %q twice", f.Name)
		}
		seen[f.Name] = true
	}
	return nil
}

func checkMetadata(m map[string]string) error {
	if len(m) > MaxMetadata {
		return fmt.Errorf("has %d entries, the most is %d", len(m), MaxMetadata)
	}
	for k, v := range m {
		if err := checkText(k, 1, 40); err != nil {
			return fmt.Errorf("has a key that %w", err)
		}
		if err := checkText(v, 0, 500); err != nil {
			return fmt.Errorf("has a value of %q that %w", k, err)
		}
	}
	return nil
}

// A Link is a bill as it stands.
type Link struct {
	ID ID
	Terms
	Created time.Time
	Expires time.Time

	DisabledAt time.Time // zero unless it was
	ExpiredAt  time.Time // when it was noticed; zero before

	Taken  uint32 // uses that are claimed or paid
	Sold   uint32 // uses that are paid
	PaidAt time.Time

	// Earned is what was paid, in atomic units by token.
	Earned map[string]string

	version uint64
}

// Status returns what can be done with the link at a time.
func (l *Link) Status(now time.Time) Status {
	switch {
	case l.Sold >= l.Uses:
		return Paid
	case l.Taken >= l.Uses:
		return Pending
	case !l.DisabledAt.IsZero():
		return Disabled
	case !now.Before(l.Expires):
		return Expired
	}
	return Active
}

// Fill checks what a payer has filled in. Blanks around it are taken off. Its
// error is a *TermsError about the field.
func (l *Link) Fill(values map[string]string) (map[string]string, error) {
	filled := map[string]string{}
	for _, f := range l.Fields {
		v := strings.TrimSpace(values[f.Name])
		most := f.Max
		if most == 0 {
			most = MaxField
		}
		if v == "" && f.Required {
			return nil, &TermsError{"fields." + f.Name, "must be filled in: " + f.Label}
		}
		if err := checkText(v, 0, most); err != nil {
			return nil, &TermsError{"fields." + f.Name, err.Error()}
		}
		if v != "" {
			filled[f.Name] = v
		}
	}
	for name := range values {
		if !slices.ContainsFunc(l.Fields, func(f Field) bool { return f.Name == name }) {
			return nil, &TermsError{"fields." + name, "is no field of this link"}
		}
	}
	return filled, nil
}
