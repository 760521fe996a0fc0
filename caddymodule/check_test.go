package caddymodule

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/tollgate402/tollgate/internal/devchain"
	"github.com/tollgate402/tollgate/payment/evm"
)

// A bench is a chain that configurations are held against.
type bench struct {
	t     *testing.T
	chain *devchain.Chain
}

func newBench(t *testing.T) *bench {
	t.Helper()
	c, err := devchain.Start(devchain.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("TEST_CHECK_LANE", hex.EncodeToString(crypto.FromECDSA(c.Account("facilitator").Key)))
	t.Setenv("TEST_CHECK_POOR", laneKey) // has nothing on this chain
	return &bench{t, c}
}

// check holds a configuration against the chain: what is in the block of a
// network, whom the route pays, and how long to wait.
func (b *bench) check(name, network, payTo, patience string) (*inspection, string, error) {
	b.t.Helper()
	return b.checkApp("pay_to "+payTo+"\n\t\tnetwork "+name+" {\n"+network+"\t\t}", patience)
}

func (b *bench) checkApp(app, patience string) (*inspection, string, error) {
	b.t.Helper()
	return b.checkRoute(app, "x402 $0.01", patience)
}

func (b *bench) checkRoute(app, route, patience string) (*inspection, string, error) {
	b.t.Helper()
	file := filepath.Join(b.t.TempDir(), "Caddyfile")
	source := "{\n\tadmin off\n\tx402 {\n\t\t" + app + "\n\t}\n}\nhttp://127.0.0.1:1 {\n\t" + route + "\n\trespond ok\n}\n"
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		b.t.Fatal(err)
	}
	var out, errs bytes.Buffer
	flags := map[string]string{"config": file, "patience": patience}
	c := &console{out: &out, errs: &errs, flag: func(name string) string { return flags[name] }}
	err := cmdCheck(c)
	found := &inspection{}
	if out.Len() > 0 {
		if err := json.Unmarshal(out.Bytes(), found); err != nil {
			b.t.Fatal(err)
		}
	}
	return found, out.String(), err
}

// wants checks that there is a remark with a verdict in which each of the
// words occurs.
func (b *bench) wants(found *inspection, v verdict, words ...string) {
	b.t.Helper()
	for _, r := range found.Remarks {
		text, all := r.About+" "+r.Says, r.Verdict == v
		for _, w := range words {
			all = all && strings.Contains(text, w)
		}
		if all {
			return
		}
	}
	b.t.Errorf("nothing is said with the verdict %q and %q in %+v", v, words, found.Remarks)
}

func (b *bench) rpc() string { return "\t\t\trpc " + b.chain.URL() + "\n" }

// long is a patience that no test waits for in vain.
const long = "20s"

const checkedLane = "\t\t\tlane key {env.TEST_CHECK_LANE}\n"

func TestCheckPassesWhereEverythingIsInPlace(t *testing.T) {
	b := newBench(t)
	found, doc, err := b.check("base-sepolia", b.rpc()+checkedLane, seller, long)
	if err != nil {
		t.Fatalf("%v\n%s", err, doc)
	}
	for _, r := range found.Remarks {
		if r.Verdict != passed {
			t.Errorf("%+v", r)
		}
	}
	b.wants(found, passed, "node", "chain 84532")
	b.wants(found, passed, "USDC", `name "USDC", version "2"`)
	b.wants(found, passed, "EIP-3009")
	b.wants(found, passed, "6 decimals")
	b.wants(found, passed, "lane", "gas money for about")
	b.wants(found, passed, seller, "plain account")
}

func TestCheckSaysWhatATokenIsReallyLike(t *testing.T) {
	b := newBench(t)
	token := func(address, name, version, decimals string) string {
		return fmt.Sprintf("\t\t\ttoken %s {\n\t\t\t\tsymbol TST\n\t\t\t\tdecimals %s\n\t\t\t\tname %q\n\t\t\t\tversion %q\n\t\t\t\tdollar\n\t\t\t}\n", address, decimals, name, version)
	}
	usdc := strings.ToLower(devchain.USDC.Hex())
	network := "eip155:84532"
	found, doc, err := b.check(network, b.rpc()+checkedLane+token("0x00000000000000000000000000000000000000aa", "Test", "1", "6"), seller, long)
	if err == nil {
		t.Errorf("a token without a contract passes: %s", doc)
	}
	b.wants(found, failed, "no contract")

	found, doc, err = b.check(network, b.rpc()+checkedLane+token(usdc, "Wrong", "9", "7"), seller, long)
	if err == nil {
		t.Errorf("it passes: %s", doc)
	}
	b.wants(found, failed, `name "USDC"`, `version "2"`, `not "Wrong" and "9"`)
	b.wants(found, failed, "6 decimals, not 7")
	b.wants(found, warned, `calls itself "USDC"`)
}

func TestCheckLooksForPermit2WhereItIsUsed(t *testing.T) {
	b := newBench(t)
	app := "pay_to " + b.chain.Account("payer").Address.Hex() + "\n\t\tnetwork base-sepolia {\n" + b.rpc() + "\t\t\tlane key {env.TEST_CHECK_LANE}\n\t\t}"
	const route = "x402 upto $0.01 {\n\t\tcharge {\n\t\t\tbase $0.01\n\t\t}\n\t}"
	found, _, err := b.checkRoute(app, route, "20s")
	if err != nil {
		t.Errorf("%v: %+v", err, found)
	}
	b.wants(found, passed, "Permit2 for upto", evm.UptoProxy.Hex())
	if err := b.chain.SetCode(evm.UptoProxy, nil, nil); err != nil {
		t.Fatal(err)
	}
	found, _, err = b.checkRoute(app, route, "20s")
	if err == nil {
		t.Error("a network without the proxy passes")
	}
	b.wants(found, failed, "Permit2 for upto", "is not there")
}

func TestCheckNamesTheWrongChain(t *testing.T) {
	b := newBench(t)
	found, _, err := b.check("base", b.rpc()+checkedLane, seller, long)
	if err == nil {
		t.Error("it passes")
	}
	b.wants(found, failed, "node", "84532")
}

func TestCheckKeepsWhatIsSecretInTheURLOfANode(t *testing.T) {
	b := newBench(t)
	t.Setenv("TEST_CHECK_RPC", "http://user:hunter2@127.0.0.1:1/v3/hunter3?key=hunter4")
	file := "\t\t\trpc {env.TEST_CHECK_RPC}\n" + checkedLane
	found, doc, err := b.check("base-sepolia", file, seller, "500ms")
	if err == nil {
		t.Error("it passes")
	}
	b.wants(found, failed, "node http://127.0.0.1:1")
	if text := doc + fmt.Sprint(err); strings.Contains(text, "hunter") {
		t.Errorf("%s", text)
	}
}

func TestCheckLooksAtWhoPaysGasAndWhoIsPaid(t *testing.T) {
	b := newBench(t)
	found, _, err := b.check("base-sepolia", b.rpc()+"\t\t\tlane key {env.TEST_CHECK_POOR}\n", devchain.USDC.Hex(), long)
	if err == nil {
		t.Error("it passes")
	}
	b.wants(found, failed, "lane", "no gas money")
	b.wants(found, failed, "pay_to", "the token's own contract")

	found, doc, err := b.check("base-sepolia", b.rpc()+checkedLane+"\t\t\trefunds key {env.TEST_CHECK_POOR}\n", b.chain.Account("facilitator").Address.Hex(), long)
	if err != nil {
		t.Fatalf("%v\n%s", err, doc)
	}
	b.wants(found, warned, "pay_to", "is a lane")
	b.wants(found, warned, "refunds", "holds no USDC")
}

func TestCheckAsksARemoteFacilitator(t *testing.T) {
	b := newBench(t)
	found, _, err := b.checkApp("pay_to "+seller+"\n\t\tnetwork base-sepolia\n\t\tfacilitator http http://127.0.0.1:1", long)
	if err == nil {
		t.Error("it passes")
	}
	b.wants(found, failed, "facilitator")
	found, doc, err := b.checkApp("pay_to "+seller+"\n\t\tnetwork base-sepolia\n\t\tfacilitator fake", long)
	if err != nil {
		t.Fatalf("%v\n%s", err, doc)
	}
	b.wants(found, passed, "facilitator", "settles exact on eip155:84532")

	const sponsoring = "pay_to " + seller + "\n\t\tnetwork base-sepolia {\n\t\t\tsponsoring erc20_approval\n\t\t}\n\t\tfacilitator "
	if found, _, err = b.checkApp(sponsoring+"fake", long); err == nil {
		t.Error("a facilitator without the extension passes")
	}
	b.wants(found, failed, "facilitator", "erc20ApprovalGasSponsoring", "base-sepolia")
	known := `{"kinds":[{"x402Version":2,"scheme":"exact","network":"eip155:84532"}],"extensions":["erc20ApprovalGasSponsoring"]}`
	uptoSays.Store(&known)
	t.Cleanup(func() { uptoSays.Store(nil) })
	if found, _, err = b.checkApp(sponsoring+"fake_upto", long); err != nil {
		t.Errorf("%v: %+v", err, found)
	}
	b.wants(found, passed, "facilitator", "has erc20ApprovalGasSponsoring")
}

func TestCheckSaysWhatToDoWithoutAConfigurationToCheck(t *testing.T) {
	b := newBench(t)
	file := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(file, []byte("http://127.0.0.1:1 {\n\trespond ok\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for config, says := range map[string]string{file: "no global option x402", file + ".not": "no such file"} {
		flags := map[string]string{"config": config, "patience": "1s"}
		c := &console{out: &bytes.Buffer{}, errs: &bytes.Buffer{}, flag: func(name string) string { return flags[name] }}
		if err := cmdCheck(c); err == nil || !strings.Contains(err.Error(), says) {
			b.t.Errorf("%s: got %v, want %q", config, err, says)
		}
	}
}

func TestCheckIsATableForPeople(t *testing.T) {
	var out bytes.Buffer
	c := &console{out: &out, asTable: true}
	if err := c.show(&inspection{Remarks: []remark{{passed, "base", "node http://a", "chain 1"}, {failed, "base", "lane 0x", "has no gas money"}}}); err != nil {
		t.Fatal(err)
	}
	if want := "OK    base  node http://a  chain 1\nFAIL  base  lane 0x        has no gas money\n"; out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}
