package chaostest

import (
	"encoding/json"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
)

const tenYears = 10 * 365 * 24 * 3600

// lie makes something false of a true answer, where the plan says so.
func (p *Proxy) lie(r request, result json.RawMessage, failed *nodeError) (json.RawMessage, *nodeError, error) {
	var err error
	switch r.Method {
	case "eth_getTransactionReceipt":
		result, err = p.falseReceipt(r, result)
	case "eth_getLogs":
		if failed == nil && p.meets(NoLogs, r.Method) {
			result = json.RawMessage("[]")
		}
	case "eth_call":
		switch {
		case isStateCall(r) && failed == nil && p.meets(FalseState, ""):
			var answer hexutil.Bytes
			if err = json.Unmarshal(result, &answer); err == nil && len(answer) == 32 {
				answer[31] ^= 1
				result, err = json.Marshal(answer)
			}
		case !isStateCall(r) && p.meets(FalseRevert, ""):
			return nil, &nodeError{Code: 3, Message: "execution reverted: no"}, nil
		}
	case "eth_chainId":
		if p.meets(FalseChain, "") {
			result = json.RawMessage(`"0x1"`)
		}
	case "eth_getTransactionCount":
		result = p.falseNumber(result, func(n *big.Int) {
			switch {
			case p.meets(NonceHigh, ""):
				n.Add(n, big.NewInt(3))
			case p.meets(NonceLow, "") && n.Sign() > 0:
				n.Sub(n, common.Big1)
			}
		})
	case "eth_estimateGas":
		result = p.falseNumber(result, func(n *big.Int) {
			if p.meets(FalseGas, "") {
				n.Mul(n, big.NewInt(1000))
			}
		})
	case "eth_maxPriorityFeePerGas":
		result = p.falseNumber(result, func(n *big.Int) {
			if p.meets(FalseFee, "") {
				n.Mul(n, big.NewInt(1000))
			}
		})
	case "eth_getBlockByNumber":
		result, err = p.falseBlock(r, result)
	}
	return result, failed, err
}

// falseNumber changes a number. What is none stays as it is.
func (p *Proxy) falseNumber(result json.RawMessage, change func(*big.Int)) json.RawMessage {
	var n hexutil.Big
	if json.Unmarshal(result, &n) != nil {
		return result
	}
	change(n.ToInt())
	changed, err := json.Marshal(&n)
	if err != nil {
		return result
	}
	return changed
}

// falseBlock changes a header that was asked for by a tag.
func (p *Proxy) falseBlock(r request, result json.RawMessage) (json.RawMessage, error) {
	block := map[string]json.RawMessage{}
	if json.Unmarshal(result, &block) != nil || block["number"] == nil {
		return result, nil
	}
	var number hexutil.Uint64
	if err := json.Unmarshal(block["number"], &number); err != nil {
		return nil, err
	}
	switch tag := string(r.Params[0]); {
	case tag == `"finalized"` && p.meets(FalseFinality, ""):
		head, err := read[map[string]json.RawMessage](p, "eth_getBlockByNumber", json.RawMessage(`"latest"`), json.RawMessage("false"))
		if err != nil {
			return nil, err
		}
		block = head
		var at hexutil.Uint64
		if err := json.Unmarshal(block["timestamp"], &at); err != nil {
			return nil, err
		}
		block["timestamp"] = quoted(uint64(at) + tenYears)
	case tag == `"latest"` && p.meets(FalseFee, ""):
		block["baseFeePerGas"] = p.falseNumber(block["baseFeePerGas"], func(n *big.Int) { n.Mul(n, big.NewInt(1000)) })
	case tag == `"latest"` && p.meets(FalseHead, ""):
		block["number"] = quoted(uint64(number) + 1000)
		block["hash"] = json.RawMessage(`"0x6666666666666666666666666666666666666666666666666666666666666666"`)
	case tag == `"latest"` && p.meets(OldHead, ""):
		old, err := read[map[string]json.RawMessage](p, "eth_getBlockByNumber", json.RawMessage(`"0x1"`), json.RawMessage("false"))
		if err != nil {
			return nil, err
		}
		block["hash"], block["number"] = old["hash"], quoted(uint64(number)+1000)
	}
	return json.Marshal(block)
}

// falseReceipt changes a receipt, or makes one up.
func (p *Proxy) falseReceipt(r request, result json.RawMessage) (json.RawMessage, error) {
	var hash common.Hash
	if err := json.Unmarshal(r.Params[0], &hash); err != nil {
		return nil, err
	}
	p.mu.Lock()
	tx := p.sent[hash]
	p.mu.Unlock()
	var receipt *types.Receipt
	if json.Unmarshal(result, &receipt) != nil || tx == nil || p.Forge == nil {
		return result, nil
	}
	switch paying := p.Forge(tx, false); {
	case receipt == nil:
		if !p.meets(Phantom, "") {
			return result, nil
		}
		head, err := read[struct {
			Number hexutil.Big `json:"number"`
			Hash   common.Hash `json:"hash"`
		}](p, "eth_getBlockByNumber", json.RawMessage(`"latest"`), json.RawMessage("false"))
		if err != nil {
			return nil, err
		}
		receipt = &types.Receipt{
			Type: tx.Type(), Status: types.ReceiptStatusSuccessful, TxHash: hash, BlockHash: head.Hash, BlockNumber: head.Number.ToInt(),
			GasUsed: 50_000, CumulativeGasUsed: 50_000, EffectiveGasPrice: tx.GasFeeCap(), Logs: paying,
		}
	case p.meets(NoReceipt, ""):
		return null, nil
	case p.meets(OtherBlock, ""):
		receipt.BlockHash = common.HexToHash("0x7777")
	case (receipt.Status == 0 || len(receipt.Logs) < len(paying)) && p.meets(FalseSuccess, ""):
		receipt.Status, receipt.Logs = types.ReceiptStatusSuccessful, paying
	case len(receipt.Logs) == 0: // the truth is bad enough
		return result, nil
	case p.meets(FalseFailure, ""):
		receipt.Status, receipt.Logs = types.ReceiptStatusFailed, nil
	case p.meets(FalseCancel, ""):
		receipt.Logs = p.Forge(tx, true)
	case p.meets(NoLogs, r.Method):
		receipt.Logs = nil
	default:
		return result, nil
	}
	if receipt.Logs == nil {
		receipt.Logs = []*types.Log{}
	}
	for i, l := range receipt.Logs {
		l.TxHash, l.BlockHash, l.BlockNumber, l.Index = hash, receipt.BlockHash, receipt.BlockNumber.Uint64(), uint(i)
	}
	return json.Marshal(receipt)
}
