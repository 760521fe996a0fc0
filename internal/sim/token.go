package sim

import (
	"bytes"
	"encoding/binary"
	"maps"
	"math/big"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/tollgate402/tollgate/internal/chain"
	"github.com/tollgate402/tollgate/payment/evm"
)

// An authorization is named by who signed it and its nonce. The token counts
// its own, Permit2 others.
type authorization struct {
	from   common.Address
	nonce  [32]byte
	permit bool
}

// A use is what became of an authorization.
type use struct {
	paid   bool   // the money moved as signed; otherwise it was cancelled, or used for something else
	amount uint64 // that moved
	gift   uint64 // of it, what the seller got for nothing
	tx     common.Hash
	block  uint64
	ours   bool // a lane's transaction did it
}

// A state is what the chain holds after a block: the token, and how many
// transactions lanes have sent. It is not changed once its block is made.
type state struct {
	balances   map[common.Address]uint64
	allowances map[common.Address]uint64 // of Permit2
	used       map[authorization]use
	nonces     map[common.Address]uint64
}

func (s *state) clone() *state {
	return &state{balances: maps.Clone(s.balances), allowances: maps.Clone(s.allowances), used: maps.Clone(s.used), nonces: maps.Clone(s.nonces)}
}

// An outcome is what a call did. Logs lack everything that their block adds.
type outcome struct {
	failed bool
	reason string
	data   []byte // that it reverted with
	output []byte
	logs   []*types.Log
	calls  []chain.InnerCall // that were not undone, in their order
	gas    uint64
}

// A frame is what a call is part of.
type frame struct {
	from      common.Address // who calls
	at, block uint64         // time and number of the block
	tx        common.Hash
	ours      bool // a lane's transaction
}

func revert(reason string) outcome { return outcome{failed: true, reason: reason, gas: 40_000} }

// What a call costs, roughly as on a chain.
const (
	gasTransfer = 60_000
	gasBase     = 21_000
)

// multicall is Multicall3, at its address on every chain.
var multicall = common.HexToAddress("0xcA11bde05977b3631167028862bE2a173976CA11")

// Selectors of what the world's contracts understand.
var (
	selTransferVRS   = [4]byte{0xe3, 0xee, 0x16, 0x0e}
	selTransferBytes = [4]byte{0xcf, 0x09, 0x29, 0x95}
	selState         = [4]byte{0xe9, 0x4a, 0x01, 0x02}
	selBalance       = [4]byte{0x70, 0xa0, 0x82, 0x31}
	selSeparator     = [4]byte{0x36, 0x44, 0xe5, 0x15}
	selAggregate3    = [4]byte{0x82, 0xad, 0x56, 0xcb}
)

// aggregate3 describes Multicall3's arguments and results.
type aggregate3 struct{ arguments, results abi.Arguments }

type call3 struct {
	Target       common.Address
	AllowFailure bool
	CallData     []byte
}

type result3 struct {
	Success    bool
	ReturnData []byte
}

func newAggregate3() (a aggregate3, err error) {
	calls, err := abi.NewType("tuple[]", "", []abi.ArgumentMarshaling{
		{Name: "target", Type: "address"}, {Name: "allowFailure", Type: "bool"}, {Name: "callData", Type: "bytes"},
	})
	if err != nil {
		return a, err
	}
	results, err := abi.NewType("tuple[]", "", []abi.ArgumentMarshaling{{Name: "success", Type: "bool"}, {Name: "returnData", Type: "bytes"}})
	return aggregate3{abi.Arguments{{Type: calls}}, abi.Arguments{{Type: results}}}, err
}

// decode returns the calls of a batch, or false if data is none.
func (a aggregate3) decode(data []byte) ([]call3, bool) {
	if len(data) < 4 || [4]byte(data) != selAggregate3 {
		return nil, false
	}
	values, err := a.arguments.Unpack(data[4:])
	if err != nil || len(values) != 1 {
		return nil, false
	}
	return *abi.ConvertType(values[0], new([]call3)).(*[]call3), true
}

// call runs one call on s, which it changes.
func (c *chainModel) call(s *state, f frame, to common.Address, data []byte) outcome {
	out := c.run(s, f, to, data)
	if !out.failed {
		out.calls = append([]chain.InnerCall{{To: to, Data: data}}, out.calls...)
	}
	return out
}

func (c *chainModel) run(s *state, f frame, to common.Address, data []byte) outcome {
	switch to {
	case multicall:
		return c.batch(s, f, data)
	case evm.Permit2:
		return c.callPermit2(s, f, data)
	case evm.ExactProxy, evm.UptoProxy:
		return c.callProxy(s, f, to, data)
	case c.token:
	default:
		return outcome{gas: gasBase} // an account: nothing happens
	}
	if len(data) < 4 {
		return revert("no such function")
	}
	arguments := data[4:]
	switch selector := [4]byte(data); {
	case selector == selSeparator:
		return outcome{output: c.separator[:], gas: 30_000}
	case selector == selBalance && len(arguments) == 32:
		out := make([]byte, 32)
		binary.BigEndian.PutUint64(out[24:], s.balances[common.BytesToAddress(arguments)])
		return outcome{output: out, gas: 30_000}
	case selector == selState && len(arguments) == 64:
		out := make([]byte, 32)
		if _, yes := s.used[authorization{from: common.BytesToAddress(arguments[:32]), nonce: [32]byte(arguments[32:])}]; yes {
			out[31] = 1
		}
		return outcome{output: out, gas: 30_000}
	case selector == selTransferVRS || selector == selTransferBytes:
		t, ok := transferOf(data)
		if !ok {
			return revert("malformed call")
		}
		return c.transfer(s, f, t)
	case selector == selAllowance && len(arguments) == 64:
		out := make([]byte, 32)
		if common.BytesToAddress(arguments[32:]) == evm.Permit2 {
			binary.BigEndian.PutUint64(out[24:], s.allowances[common.BytesToAddress(arguments[:32])])
		}
		return outcome{output: out, gas: 30_000}
	}
	return revert("no such function")
}

// batch runs the calls of an aggregate3.
func (c *chainModel) batch(s *state, f frame, data []byte) outcome {
	calls, ok := c.aggregate.decode(data)
	if !ok {
		return revert("no such function")
	}
	whole := outcome{gas: gasBase}
	f.from = multicall
	results := make([]result3, 0, len(calls))
	for _, one := range calls {
		out := c.call(s, f, one.Target, one.CallData)
		whole.gas += out.gas
		if out.failed && !one.AllowFailure {
			return revert("Multicall3: call failed")
		}
		if out.failed {
			out.output = nil
		}
		whole.logs = append(whole.logs, out.logs...)
		whole.calls = append(whole.calls, out.calls...)
		results = append(results, result3{!out.failed, out.output})
	}
	var err error
	if whole.output, err = c.aggregate.results.Pack(results); err != nil {
		panic("sim: encoding the results of a batch: " + err.Error())
	}
	return whole
}

// transfer moves money by an authorization.
func (c *chainModel) transfer(s *state, f frame, t *evm.Transfer) outcome {
	key := authorization{from: t.From, nonce: t.Nonce}
	now := new(big.Int).SetUint64(f.at)
	_, used := s.used[key]
	switch {
	case now.Cmp(t.ValidAfter) <= 0:
		return revert("FiatTokenV2: authorization is not yet valid")
	case now.Cmp(t.ValidBefore) >= 0:
		return revert("FiatTokenV2: authorization is expired")
	case used:
		return revert("FiatTokenV2: authorization is used or canceled")
	case !c.signed(t.Digest(c.separator), t.Signature, t.From):
		return revert("FiatTokenV2: invalid signature")
	case !t.Value.IsUint64() || s.balances[t.From] < t.Value.Uint64():
		return revert("ERC20: transfer amount exceeds balance")
	}
	s.used[key] = use{paid: true, amount: t.Value.Uint64(), tx: f.tx, block: f.block, ours: f.ours}
	out := c.move(s, t.From, t.To, t.Value.Uint64())
	out.logs = append([]*types.Log{
		{Address: c.token, Topics: []common.Hash{evm.TopicAuthorizationUsed, common.BytesToHash(t.From[:]), t.Nonce}},
	}, out.logs...)
	return out
}

// cancel spends an authorization without moving money.
func (c *chainModel) cancel(s *state, key authorization, u use) outcome {
	if _, used := s.used[key]; used {
		return revert("FiatTokenV2: authorization is used or canceled")
	}
	s.used[key] = u
	return outcome{gas: gasTransfer, logs: []*types.Log{
		{Address: c.token, Topics: []common.Hash{evm.TopicAuthorizationCanceled, common.BytesToHash(key.from[:]), key.nonce}},
	}}
}

// signed reports whether a signature of a digest is an account's. Signatures
// are checked for real, and each one once.
func (c *chainModel) signed(digest common.Hash, signature []byte, by common.Address) bool {
	key := string(digest[:]) + string(signature)
	signer, known := c.signers[key]
	if !known {
		signer, _ = evm.Recover(digest, signature) // nobody, if it is no signature
		c.signers[key] = signer
	}
	return signer == by && signer != common.Address{}
}

// transferOf reads the call that spends an authorization.
func transferOf(data []byte) (*evm.Transfer, bool) {
	const fields = 6 * 32
	if len(data) < 4+fields+32 {
		return nil, false
	}
	w := func(i int) []byte { return data[4+32*i : 4+32*(i+1)] }
	t := &evm.Transfer{Authorization: evm.Authorization{
		From: common.BytesToAddress(w(0)), To: common.BytesToAddress(w(1)),
		Value: new(big.Int).SetBytes(w(2)), ValidAfter: new(big.Int).SetBytes(w(3)), ValidBefore: new(big.Int).SetBytes(w(4)),
		Nonce: [32]byte(w(5)),
	}}
	switch [4]byte(data) {
	case selTransferVRS:
		if len(data) != 4+9*32 {
			return nil, false
		}
		t.Signature = append(bytes.Clone(data[4+7*32:]), data[4+7*32-1])
	case selTransferBytes:
		if len(data) < 4+8*32 {
			return nil, false
		}
		n, rest := new(big.Int).SetBytes(data[4+7*32:4+8*32]), data[4+8*32:]
		if n.Cmp(big.NewInt(int64(len(rest)))) > 0 {
			return nil, false
		}
		t.Signature = bytes.Clone(rest[:n.Int64()])
	default:
		return nil, false
	}
	return t, true
}

// itemsOf names the authorizations that a call spends, in their order.
func (c *chainModel) itemsOf(to common.Address, data []byte) string {
	var names string
	one := func(to common.Address, data []byte) {
		if t, ok := transferOf(data); ok && to == c.token {
			names += t.From.Hex() + common.Hash(t.Nonce).Hex() + " "
		}
		if p, err := evm.ReadPermitCall(to, data); err == nil {
			names += p.Permit.From.Hex() + " " + p.Permit.Nonce.String() + " for " + p.Charge.String() + " "
		}
	}
	if calls, ok := c.aggregate.decode(data); ok && to == multicall {
		for _, call := range calls {
			one(call.Target, call.CallData)
		}
		return names
	}
	one(to, data)
	return names
}
