// Lets Permit2 move the payer's TOKEN, as every payer by Permit2 does once: the transaction that @x402/evm makes for it,
// sent with the payer's key and gas. Prints its hash.
import { createPermit2ApprovalTx } from "@x402/evm/exact/client";
import { createWalletClient, http } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { baseSepolia } from "viem/chains";
import { keyFromEnv, nodeFromEnv } from "../report.mjs";

const { TOKEN: token } = process.env;
if (!token) throw new Error("set TOKEN to the address of the token");
const wallet = createWalletClient({
  account: privateKeyToAccount(keyFromEnv()),
  chain: baseSepolia,
  transport: http(nodeFromEnv()),
});
const transaction = await wallet.sendTransaction(createPermit2ApprovalTx(token));
process.stdout.write(JSON.stringify({ transaction }) + "\n");
