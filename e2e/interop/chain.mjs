// What the matrix asks of the chain, over plain JSON-RPC, so that the judge shares no code with the clients it judges.

const transferTopic = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"; // keccak256("Transfer(address,address,uint256)")
const balanceOfSelector = "0x70a08231"; // balanceOf(address)
const allowanceSelector = "0xdd62ed3e"; // allowance(address,address)
const permit2 = "0x000000000022d473030f116ddee9f6b43ac78ba3"; // on every chain

const word = (address) => address.slice(2).toLowerCase().padStart(64, "0");
const addressOf = (topic) => "0x" + topic.slice(26);

/** One token on one node. Amounts are bigints in atomic units, addresses lower case. */
export class TokenChain {
  constructor(rpcUrl, token) {
    this.rpcUrl = rpcUrl;
    this.token = token.toLowerCase();
    this.lastId = 0;
  }

  async call(method, ...params) {
    this.lastId += 1;
    const response = await fetch(this.rpcUrl, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ jsonrpc: "2.0", id: this.lastId, method, params }),
    });
    const { result, error } = await response.json();
    if (error) throw new Error(`${method}: ${error.message}`);
    return result;
  }

  async height() {
    return BigInt(await this.call("eth_blockNumber"));
  }

  /** The balance of address at a height that exists. */
  async balance(address, height) {
    const data = balanceOfSelector + word(address);
    return BigInt(await this.call("eth_call", { to: this.token, data }, hex(height)));
  }

  /** What address has allowed Permit2 to move of its tokens, at a height that exists. */
  async allowance(address, height) {
    const data = allowanceSelector + word(address) + word(permit2);
    return BigInt(await this.call("eth_call", { to: this.token, data }, hex(height)));
  }

  /** What address holds for gas at a height that exists, in wei. */
  async ether(address, height) {
    return BigInt(await this.call("eth_getBalance", address, hex(height)));
  }

  /** The height of the block that holds a transaction, or null. */
  async blockOf(hash) {
    const receipt = await this.call("eth_getTransactionReceipt", hash);
    return receipt === null ? null : BigInt(receipt.blockNumber);
  }

  /** Every transfer of the token in a transaction, or null where it failed or is unknown. */
  async transfersIn(hash) {
    const receipt = await this.call("eth_getTransactionReceipt", hash);
    if (receipt === null || receipt.status !== "0x1") return null;
    return receipt.logs.filter((log) => this.isTransfer(log)).map(toTransfer);
  }

  /** Every transfer of the token out of address after one height and up to another. */
  async transfersFrom(address, after, upTo) {
    if (upTo <= after) return []; // nodes refuse a range that starts above their head
    const logs = await this.call("eth_getLogs", {
      address: this.token,
      topics: [transferTopic, "0x" + word(address)],
      fromBlock: hex(after + 1n),
      toBlock: hex(upTo),
    });
    return logs.map(toTransfer);
  }

  isTransfer(log) {
    return log.address.toLowerCase() === this.token && log.topics[0] === transferTopic;
  }
}

function hex(n) {
  return "0x" + n.toString(16);
}

function toTransfer(log) {
  return {
    from: addressOf(log.topics[1]),
    to: addressOf(log.topics[2]),
    value: BigInt(log.data),
    transaction: log.transactionHash,
  };
}
