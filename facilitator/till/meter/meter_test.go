package meter

import (
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tollgate402/tollgate/payment"
)

func path(t testing.TB, s string) Path {
	t.Helper()
	p, err := ParsePath(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// header is that of an answer of a media type.
func header(media string) http.Header { return http.Header{"Content-Type": {media}} }

// usage returns what a tariff counts of a body that comes in pieces.
func usage(tariff *Tariff, media string, pieces ...string) Usage {
	tap := tariff.NewTap(header(media))
	for _, p := range pieces {
		_, _ = tap.Write([]byte(p)) // never fails
	}
	return tap.Usage()
}

func fields(t testing.TB, paths ...string) *Tariff {
	t.Helper()
	tariff := &Tariff{}
	for _, p := range paths {
		tariff.Rates = append(tariff.Rates, Rate{Price: big.NewRat(1, 1), Of: Field, Path: path(t, p)})
	}
	return tariff
}

// said returns the fields of a usage in one line.
func said(u Usage) string {
	var list []string
	for _, f := range u.Fields {
		if f == nil {
			list = append(list, "-")
			continue
		}
		list = append(list, f.RatString())
	}
	return strings.Join(list, " ")
}

func TestNumbersAreFoundAtPathsOfJSON(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ paths, body, want string }{
		{"usage.total_tokens", `{"usage":{"prompt_tokens":1,"total_tokens":42}}`, "42"},
		{"usage.total_tokens", `{"a":{"usage":{"total_tokens":1}},"usage":{"b":{"total_tokens":2},"total_tokens":3},"total_tokens":4}`, "3"},
		{"data.1.n", `{"data":[{"n":1},{"n":2},{"n":3}]}`, "2"},
		{"0.1", `[[7,8],[9]]`, "8"},
		{"10", `[0,1,2,3,4,5,6,7,8,9,10,11]`, "10"},
		{"1", `{"1":5}`, "5"},
		{"a.b a", `{"a":1,"x":{"a":2}}`, "- 1"},
		{"a", `{"a":1,"a":2}`, "2"},
		{"a", `{"\u0061":6}`, "6"},
		{"a", `{"b":"\"a\":1","a" : 3 }`, "3"},
		{"a", `{"b":"a","c":1}`, "-"},
		{"a.b", `{"a":[{"b":1}],"a":{"b":2}}`, "2"},
		{"a", `{"a":null}`, "-"},
		{"a", `{"a":"12"}`, "-"},
		{"a", `{"a":-1}`, "-"},
		{"a", `{"a":1.25e1}`, "25/2"},
		{"a", `{"a":1e31}`, "-"},
		{"a", `{"a":1e-999999999999}`, "-"},
		{"a", `{"a":1` + strings.Repeat("0", 60) + `}`, "-"},
		{"a", `{"a":01}`, "-"},
		{"a", `{"a":12`, "-"},
		{"a", `{"` + strings.Repeat("k", 10_000) + `":1,"a":2}`, "2"},
		{"a", `{"x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `,"a":2}`, "2"},
		{"n", `{"n":1}` + "\n" + `{"n":2}`, "2"},
		{"a", `}]{"a":1}`, "1"},
	} {
		paths := strings.Fields(c.paths)
		if got := said(usage(fields(t, paths...), "application/json; charset=utf-8", c.body)); got != c.want {
			t.Errorf("%v of %.60s: %s, want %s", paths, c.body, got, c.want)
		}
	}
}

const openAI = `: hello

data: {"choices":[{"delta":{"content":"Hel"}}],"usage":null}

data: {"choices":[{"delta":{"content":"lo"}}],"usage":null}

data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":2,"total_tokens":13}}

data: [DONE]

`

const anthropic = `event: message_start
data: {"type":"message_start","message":{"usage":{"input_tokens":25,"output_tokens":1}}}

event: content_block_delta
data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"Hello"}}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},
data: "usage":{"output_tokens":15}}

`

func TestUsageIsFoundInEventStreams(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		paths, body, want string
		events            int64
	}{
		{"usage.prompt_tokens usage.completion_tokens usage.total_tokens", openAI, "11 2 13", 3},
		{"usage.total_tokens", strings.ReplaceAll(openAI, "\n", "\r\n"), "13", 3},
		{"usage.total_tokens", strings.ReplaceAll(openAI, "\n", "\r"), "13", 3},
		{"usage.total_tokens", "\ufeff" + openAI, "13", 3},
		{"message.usage.input_tokens usage.output_tokens", anthropic, "25 15", 3},
		{"usage.n", "data:{\"usage\":{\"n\":1}}\n\ndata: {\"usage\":{\"n\":5}}\n\n", "5", 2},
		{"n", "data: {\"n\":\ndata: 7}\n\n", "7", 1},
		{"n", "data: {\"n\":1\n\ndata: 2}\n\n", "-", 2},
		{"n", "datax: {\"n\":1}\n\n: {\"n\":1}\n\nid: 1\n\ndata\n\ndata:\n\n", "-", 0},
		{"n", "data: {\"n\":1}\n", "1", 0}, // it has come, although the event has no end
		{"n", "data: {\"n\":\"" + strings.Repeat("x", 1<<20) + "\",\"n\":4}\n\n", "4", 1},
	} {
		u := usage(fields(t, strings.Fields(c.paths)...), "text/event-stream", c.body)
		if said(u) != c.want || u.Events != c.events || u.Bytes != int64(len(c.body)) {
			t.Errorf("%.60q: %s in %d events, want %s in %d", c.body, said(u), u.Events, c.want, c.events)
		}
	}
}

func TestLinesOfJSONCountAsEvents(t *testing.T) {
	t.Parallel()
	u := usage(fields(t, "eval_count"), "application/x-ndjson", "{\"response\":\"a\"}\n{\"response\":\"b\"}\n{\"eval_count\":2}\n")
	if u.Events != 3 || said(u) != "2" {
		t.Errorf("%d events, %s", u.Events, said(u))
	}
	if u := usage(fields(t, "n"), "application/json", `{"n":1}`); u.Events != 0 {
		t.Errorf("one document is %d events", u.Events)
	}
}

func TestOfOtherBodiesOnlyTheBytesCount(t *testing.T) {
	t.Parallel()
	tariff := fields(t, "n")
	if u := usage(tariff, "text/plain", `{"n":1}`); said(u) != "-" || u.Bytes != 7 {
		t.Errorf("%+v", u)
	}
	h := header("application/json")
	h.Set("Content-Encoding", "gzip")
	tap := tariff.NewTap(h)
	_, _ = tap.Write([]byte(`{"n":1}`))
	if u := tap.Usage(); said(u) != "-" || tap.Problem() == "" {
		t.Errorf("%+v, %q", u, tap.Problem())
	}
	tap = tariff.NewTap(header("application/json"))
	_, _ = tap.Write([]byte(`{"n":-1}`))
	if tap.Problem() != "what the body has at n is no number that can be charged" {
		t.Errorf("%q", tap.Problem())
	}
}

func TestChargesAreRoundedUpOnceAndCapped(t *testing.T) {
	t.Parallel()
	tariff := &Tariff{Base: big.NewRat(100, 1), Rates: []Rate{
		{Price: big.NewRat(2000, 1000), Of: Field, Path: path(t, "usage.total_tokens"), Estimate: &Estimate{Number: big.NewRat(3, 2), Per: Events}},
		{Price: big.NewRat(10_000, 1_000_000), Of: Bytes},
		{Price: big.NewRat(1000, 1), Of: Seconds},
		{Price: big.NewRat(1, 3), Of: Events},
		{Price: big.NewRat(1, 1), Of: Field, Path: path(t, "size"), Estimate: &Estimate{Number: big.NewRat(1, 4), Per: Bytes}},
	}}
	if err := tariff.Check(); err != nil {
		t.Fatal(err)
	}
	most := big.NewInt(50_000)
	one := func(n int64) *big.Rat { return big.NewRat(n, 1) }
	for _, c := range []struct {
		u    Usage
		took time.Duration
		want int64
	}{
		{Usage{}, 0, 100},
		{Usage{}, time.Nanosecond, 101},
		{Usage{}, -time.Second, 100},
		{Usage{}, 1500 * time.Millisecond, 1600},
		{Usage{Events: 2}, 0, 107},                                             // 6 for 3 estimated tokens, 2/3 for the events
		{Usage{Events: 2, Fields: []*big.Rat{one(13)}}, 0, 127},                // 26, and 2/3
		{Usage{Bytes: 400}, 0, 204},                                            // 4 for the bytes, 100 for the estimate
		{Usage{Bytes: 400, Fields: []*big.Rat{0: nil, 4: one(0)}}, 0, 104},     // a field that says 0 is known
		{Usage{Fields: []*big.Rat{one(1_000_000)}}, 0, 50_000},                 // capped
		{Usage{Fields: []*big.Rat{one(1_000_000)}, Said: big.NewInt(7)}, 0, 7}, // in place of everything else
		{Usage{Said: big.NewInt(0)}, time.Hour, 0},
	} {
		if got := tariff.Charge(&c.u, c.took, most); got.Cmp(big.NewInt(c.want)) != 0 {
			t.Errorf("%+v for %s: %s, want %d", c.u, c.took, got, c.want)
		}
	}
	atMost := Usage{Fields: []*big.Rat{big.NewRat(49_900, 2), nil, nil, nil, one(0)}}
	if got := tariff.Charge(&atMost, 0, most); got.Cmp(most) != 0 || tariff.Spent(&atMost, 0, most) || !tariff.Spent(&atMost, 1, most) {
		t.Errorf("%s, spent %t", got, tariff.Spent(&atMost, 0, most))
	}
}

func TestTariffsThatChargeForNothingAreRefused(t *testing.T) {
	t.Parallel()
	price := big.NewRat(1, 1)
	for _, tariff := range []Tariff{
		{},
		{Base: big.NewRat(-1, 1)},
		{Rates: []Rate{{Of: Bytes}}},
		{Rates: []Rate{{Price: price, Of: Field}}},
		{Rates: []Rate{{Price: price, Of: Bytes, Path: Path{"a"}}}},
		{Rates: []Rate{{Price: price, Of: 9}}},
		{Rates: []Rate{{Price: price, Of: Bytes, Estimate: &Estimate{price, Events}}}},
		{Rates: []Rate{{Price: price, Of: Field, Path: Path{"a"}, Estimate: &Estimate{price, Seconds}}}},
		{Rates: make([]Rate, MaxRates+1)},
	} {
		if tariff.Check() == nil {
			t.Errorf("%+v is accepted", tariff)
		}
	}
}

func TestPathsAreBounded(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", ".a", "a.", "a..b", strings.Repeat("a", 65), strings.Repeat("a.", 16) + "a"} {
		if p, err := ParsePath(s); err == nil {
			t.Errorf("%.20q is %v", s, p)
		}
	}
	if p := path(t, "a.0.b"); p.String() != "a.0.b" || len(p) != 3 {
		t.Errorf("%v", p)
	}
}

func dollars(t testing.TB, units int64) payment.Amount {
	t.Helper()
	usdc, ok := payment.USDC(payment.EVM(84532))
	if !ok {
		t.Fatal("no USDC")
	}
	a, err := payment.NewAmount(big.NewInt(units), usdc)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// The first rows are those of the reference's vectors, matching.settlementOverride.
func TestWhatTheUpstreamSaysIsReadAsTheReferenceHasIt(t *testing.T) {
	t.Parallel()
	most := dollars(t, 5_000_000)
	for _, c := range []struct{ in, want string }{
		{"100%", "5000000"},
		{"0%", "0"},
		{"$0.05", "50000"},
		{"$1", "1000000"},
		{"$0.0000019", "1"},
		{"33.333%", ""},
		{"150%", ""}, // more than the maximum
		{"33.33%", "1666500"},
		{"1858", "1858"},
		{` {"amount":"1858"} `, "1858"},
		{`{"amount":"12.5%"}`, "625000"},
		{"0", "0"},
		{"5000001", ""},
		{"$5.01", ""},
		{"$99999999999999999999999999999999999999999999999999999999999999999999999999999999", ""},
		{"", ""},
		{"-1", ""},
		{"+1", ""},
		{"01", ""},
		{"1e3", ""},
		{"1.5", ""},
		{"0x10", ""},
		{"$", ""},
		{"$.5", ""},
		{"$1.", ""},
		{"$-1", ""},
		{"%", ""},
		{".5%", ""},
		{"1.%", ""},
		{`{"amount":1858}`, ""},
		{`{"amount":"1858"`, ""},
		{`{}`, ""},
	} {
		got, err := ParseSaid(c.in, most)
		if (err == nil) != (c.want != "") || err == nil && got.String() != c.want {
			t.Errorf("%q: %v, %v, want %q", c.in, got, err, c.want)
		}
	}
	tok := most.Token()
	tok.Dollar = false
	other, err := payment.NewAmount(big.NewInt(5_000_000), tok)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseSaid("$1", other); err == nil {
		t.Errorf("dollars of another token: %s", got)
	}
}

// bodies are texts that are almost those that upstreams send.
var bodies = rapid.Custom(func(t *rapid.T) string {
	parts := rapid.SliceOfN(rapid.SampledFrom([]string{
		"data: ", "data:", "\n", "\n\n", "\r\n", "\r", "[DONE]", ": comment", `{"usage":`, `{"total_tokens":`, "12", "3", ".5", "e2", "-", "}", "}}", "[", "]", ",", `"a"`, `"\u0061":`, `"usage"`, ":",
		"null", `"`, `\`, " ", "\ufeff", "x", `{"a":[1,{"b":2}],"usage":{"total_tokens":7}}`, openAI, anthropic,
	}), 0, 30).Draw(t, "parts")
	return strings.Join(parts, "")
})

func anyTariff(t *rapid.T) *Tariff {
	tariff := &Tariff{Base: big.NewRat(rapid.Int64Range(0, 1000).Draw(t, "base"), 7)}
	for i := range rapid.IntRange(0, 4).Draw(t, "rates") {
		r := Rate{Price: big.NewRat(rapid.Int64Range(0, 5000).Draw(t, "price"), 1000), Of: Quantity(rapid.IntRange(0, 3).Draw(t, "of"))}
		if r.Of == Field {
			r.Path = rapid.SampledFrom([]Path{{"usage", "total_tokens"}, {"usage", "output_tokens"}, {"a"}, {"a", "1", "b"}, {"0"}}).Draw(t, "path")
			if rapid.Bool().Draw(t, fmt.Sprint("estimate", i)) {
				r.Estimate = &Estimate{Number: big.NewRat(rapid.Int64Range(0, 5).Draw(t, "number"), 2), Per: rapid.SampledFrom([]Quantity{Events, Bytes}).Draw(t, "per")}
			}
		}
		tariff.Rates = append(tariff.Rates, r)
	}
	return tariff
}

func anyMedia(t *rapid.T) string {
	return rapid.SampledFrom([]string{"text/event-stream", "application/json", "application/x-ndjson", "text/plain"}).Draw(t, "media")
}

func TestHowABodyIsCutIntoPiecesMakesNoDifference(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		tariff, media, body := anyTariff(t), anyMedia(t), bodies.Draw(t, "body")
		var pieces []string
		for rest := body; rest != ""; {
			n := rapid.IntRange(1, min(len(rest), 12)).Draw(t, "piece")
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		whole, cut := usage(tariff, media, body), usage(tariff, media, pieces...)
		if said(whole) != said(cut) || whole.Bytes != cut.Bytes || whole.Events != cut.Events {
			t.Fatalf("%q: %+v in one piece, %+v in %q", body, whole, cut, pieces)
		}
	})
}

// What is counted grows with the body but where the body says what takes the
// place of an estimate, or of what it has said before.
func TestChargesGrowWithTheAnswerAndStayBelowTheMaximum(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		tariff, media := anyTariff(t), anyMedia(t)
		most := big.NewInt(rapid.Int64Range(1, 3000).Draw(t, "most"))
		tap := tariff.NewTap(header(media))
		var before *big.Int
		var last Usage
		var took time.Duration
		for range rapid.IntRange(1, 8).Draw(t, "writes") {
			_, _ = tap.Write([]byte(bodies.Draw(t, "piece")))
			took += time.Duration(rapid.Int64Range(0, 1e9).Draw(t, "pause"))
			u := tap.Usage()
			charge := tariff.Charge(&u, took, most)
			if charge.Sign() < 0 || charge.Cmp(most) > 0 {
				t.Fatalf("the charge is %s of %s", charge, most)
			}
			if tariff.Spent(&u, took, most) && charge.Cmp(most) != 0 {
				t.Fatalf("spent, at %s of %s", charge, most)
			}
			if before != nil && said(u) == said(last) && charge.Cmp(before) < 0 {
				t.Fatalf("the charge fell from %s to %s", before, charge)
			}
			before, last = charge, u
		}
	})
}

func TestUsageThatWasReadDoesNotChange(t *testing.T) {
	t.Parallel()
	tap := fields(t, "n").NewTap(header("application/json"))
	_, _ = tap.Write([]byte(`{"n":1}`))
	u := tap.Usage()
	_, _ = tap.Write([]byte(`{"n":2}`))
	if said(u) != "1" || said(tap.Usage()) != "2" {
		t.Errorf("%s, then %s", said(u), said(tap.Usage()))
	}
}

// What a tap keeps does not grow with what it reads.
func TestATapKeepsLittleOfWhatItReads(t *testing.T) {
	t.Parallel()
	tap := fields(t, "a.b.c").NewTap(header("text/event-stream"))
	_, _ = tap.Write([]byte("data: "))
	long := []byte(`{"a":{"` + strings.Repeat(`\u0062`, 1000) + `":[` + strings.Repeat("1", 5000) + `,` + strings.Repeat("{[", 5000))
	for range 50 {
		_, _ = tap.Write(long)
	}
	s := tap.events.json
	if cap(s.text) > 4*maxKey || cap(s.frames) > 8 {
		t.Errorf("%d bytes of text, %d frames", cap(s.text), cap(s.frames))
	}
}

func FuzzTap(f *testing.F) {
	for _, body := range []string{openAI, anthropic, `{"usage":{"total_tokens":1e5}}`, "data: {\"usage\":{\"total_tokens\":0.1}}\r\n\r\n", "\xef\xbb", "[[[[1,2],3],4],5]"} {
		f.Add(body, 3)
	}
	tariff := &Tariff{Rates: []Rate{
		{Price: big.NewRat(1, 1000), Of: Field, Path: Path{"usage", "total_tokens"}, Estimate: &Estimate{big.NewRat(1, 1), Events}},
		{Price: big.NewRat(1, 3), Of: Field, Path: Path{"0", "1"}},
		{Price: big.NewRat(1, 1), Of: Events},
	}}
	most := big.NewInt(1000)
	f.Fuzz(func(t *testing.T, body string, cut int) {
		cut = min(max(cut, 0), len(body))
		for _, media := range []string{"text/event-stream", "application/json", "application/x-ndjson"} {
			whole, pieces := usage(tariff, media, body), usage(tariff, media, body[:cut], body[cut:])
			if said(whole) != said(pieces) || whole.Events != pieces.Events {
				t.Errorf("%s: %+v in one piece, %+v in two", media, whole, pieces)
			}
			if charge := tariff.Charge(&whole, time.Second, most); charge.Sign() < 0 || charge.Cmp(most) > 0 {
				t.Errorf("the charge is %s", charge)
			}
		}
	})
}

func FuzzParseSaid(f *testing.F) {
	for _, s := range []string{"1858", "33.33%", "$0.05", `{"amount":"1%"}`, "$0.0000019", "1e9%"} {
		f.Add(s)
	}
	most := dollars(f, 5_000_000)
	f.Fuzz(func(t *testing.T, s string) {
		units, err := ParseSaid(s, most)
		if err == nil && (units.Sign() < 0 || units.Cmp(most.Big()) > 0) {
			t.Errorf("%q is %s", s, units)
		}
	})
}

func BenchmarkTap(b *testing.B) {
	tariff := &Tariff{Base: big.NewRat(100, 1), Rates: []Rate{
		{Price: big.NewRat(2, 1), Of: Field, Path: Path{"usage", "total_tokens"}, Estimate: &Estimate{big.NewRat(1, 1), Events}},
		{Price: big.NewRat(1, 100), Of: Bytes},
	}}
	most := big.NewInt(1 << 40)
	event := []byte(`data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"Hello"}}],"usage":null}` + "\n\n")
	tap := tariff.NewTap(header("text/event-stream"))
	b.SetBytes(int64(len(event)))
	b.ReportAllocs()
	for b.Loop() {
		_, _ = tap.Write(event)
		u := tap.Usage()
		if tariff.Spent(&u, time.Second, most) {
			b.Fatal("spent")
		}
	}
}
