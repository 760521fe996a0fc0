package chaostest

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
)

const (
	staleFor = 8 // polls of the head that a stale time lasts
	maxBack  = 4 // how many blocks a head goes back
	lag      = 4 // how far behind the head a stale node's final block is
)

var null = json.RawMessage("null")

// age decides, for each few polls of the head, whether the node is stale.
func (p *Proxy) age() error {
	p.mu.Lock()
	p.looks++
	turn := p.looks%staleFor == 1
	p.mu.Unlock()
	if !turn {
		return nil
	}
	var frozen uint64
	if p.meets(Stale, "") {
		head, err := read[hexutil.Uint64](p, "eth_blockNumber")
		if err != nil {
			return err
		}
		back := uint64(maxBack * p.draw("back"))
		frozen = max(1, uint64(head)-min(uint64(head), back))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.calm.Load() {
		p.frozen = frozen
	}
	return nil
}

func (p *Proxy) staleAt() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.frozen
}

func (p *Proxy) isFrozen() bool { return p.staleAt() != 0 }

// answer answers one request: with a result, or a node's error. err means
// that the honest node is not there.
func (p *Proxy) answer(r request) (result json.RawMessage, failed *nodeError, err error) {
	if r.Method == "eth_sendRawTransaction" {
		return p.take(r)
	}
	switch {
	case p.meets(NodeError, r.Method):
		return nil, &nodeError{Code: -32005, Message: "limit exceeded"}, nil
	case p.meets(Null, r.Method):
		return null, nil, nil
	}
	if at := p.staleAt(); at != 0 {
		result, failed, err = p.recall(r, at)
	} else {
		result, failed, err = p.ask(r.Method, r.Params...)
	}
	if err != nil {
		return nil, nil, err
	}
	return p.lie(r, result, failed)
}

// recall answers as a node whose head is block number at.
func (p *Proxy) recall(r request, at uint64) (json.RawMessage, *nodeError, error) {
	if r.Method == "eth_blockNumber" {
		return quoted(at), nil, nil
	}
	params := make([]json.RawMessage, len(r.Params))
	for i, param := range r.Params {
		params[i] = param
		switch string(param) {
		case `"latest"`, `"pending"`:
			params[i] = quoted(at)
		case `"safe"`:
			params[i] = quoted(at - min(at, lag/2))
		case `"finalized"`:
			params[i] = quoted(at - min(at, lag))
		}
	}
	switch r.Method {
	case "eth_getBlockByNumber":
		var number hexutil.Uint64
		if json.Unmarshal(params[0], &number) == nil && uint64(number) > at {
			return null, nil, nil
		}
	case "eth_getTransactionReceipt":
		result, failed, err := p.ask(r.Method, params...)
		if err != nil || failed != nil {
			return nil, failed, err
		}
		var receipt *struct {
			BlockNumber hexutil.Uint64 `json:"blockNumber"`
		}
		if json.Unmarshal(result, &receipt) == nil && receipt != nil && uint64(receipt.BlockNumber) > at {
			return null, nil, nil
		}
		return result, nil, nil
	case "eth_call", "eth_getBalance", "eth_getTransactionCount", "eth_getCode":
		unknown, err := p.unknownAt(params, at)
		if err != nil || unknown {
			return nil, &nodeError{Code: -32000, Message: "header not found"}, err
		}
	}
	return p.ask(r.Method, params...)
}

// unknownAt reports whether a request names a block by its hash that a node
// has not got whose head is block number at.
func (p *Proxy) unknownAt(params []json.RawMessage, at uint64) (bool, error) {
	var ref struct {
		BlockHash *common.Hash `json:"blockHash"`
	}
	if len(params) < 2 || json.Unmarshal(params[1], &ref) != nil || ref.BlockHash == nil {
		return false, nil
	}
	name, err := json.Marshal(ref.BlockHash)
	if err != nil {
		return false, err
	}
	block, err := read[*struct {
		Number hexutil.Uint64 `json:"number"`
	}](p, "eth_getBlockByHash", name, json.RawMessage("false"))
	return block == nil || uint64(block.Number) > at, err
}

// take accepts a transaction, or says so.
func (p *Proxy) take(r request) (json.RawMessage, *nodeError, error) {
	var raw hexutil.Bytes
	tx := new(types.Transaction)
	if len(r.Params) == 1 && json.Unmarshal(r.Params[0], &raw) == nil && tx.UnmarshalBinary(raw) == nil {
		p.mu.Lock()
		p.sent[tx.Hash()] = tx
		p.mu.Unlock()
	}
	// refuses passes the transaction on every other time.
	refuses := func(message string) (json.RawMessage, *nodeError, error) {
		if p.draw("taken") < 0.5 {
			if _, _, err := p.ask(r.Method, r.Params...); err != nil {
				return nil, nil, err
			}
		}
		return nil, &nodeError{Code: -32000, Message: message}, nil
	}
	switch {
	case p.meets(Swallows, ""):
		hash, err := json.Marshal(tx.Hash())
		return hash, nil, err
	case p.meets(AlreadyKnown, ""):
		return nil, &nodeError{Code: -32000, Message: "already known"}, nil
	case p.meets(LateError, ""):
		if _, _, err := p.ask(r.Method, r.Params...); err != nil {
			return nil, nil, err
		}
		return nil, &nodeError{Code: -32603, Message: "internal error: backend timed out"}, nil
	case p.meets(NonceTooLow, ""):
		return refuses("nonce too low: next nonce 17, tx nonce 3")
	case p.meets(Underpriced, ""):
		return refuses("replacement transaction underpriced")
	}
	return p.ask(r.Method, r.Params...)
}

func quoted(n uint64) json.RawMessage {
	return json.RawMessage(strconv.Quote("0x" + strconv.FormatUint(n, 16)))
}

// isStateCall reports whether r asks a token whether an authorization is used.
func isStateCall(r request) bool {
	const authorizationState = "0xe94a0102"
	var call struct {
		Input string `json:"input"`
	}
	return r.Method == "eth_call" && len(r.Params) > 0 && json.Unmarshal(r.Params[0], &call) == nil && strings.HasPrefix(call.Input, authorizationState)
}
