// The official facilitator, for the benchmark of /verify: exact on EVM, on the chain at RPC_URL. Prints its address when it
// listens.
import { createServer } from "node:http";
import { x402Facilitator } from "@x402/core/facilitator";
import { toFacilitatorEvmSigner } from "@x402/evm";
import { ExactEvmScheme } from "@x402/evm/exact/facilitator";
import { createWalletClient, http, publicActions } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { baseSepolia } from "viem/chains";

const { RPC_URL: rpc, PRIVATE_KEY: key } = process.env;
const account = privateKeyToAccount(key);
const client = createWalletClient({ account, chain: baseSepolia, transport: http(rpc) }).extend(publicActions);
const facilitator = new x402Facilitator();
facilitator.register("eip155:84532", new ExactEvmScheme(toFacilitatorEvmSigner({ ...client, address: account.address })));

const server = createServer(async (request, response) => {
  let body = "";
  for await (const chunk of request) body += chunk;
  let status = 200;
  let answer;
  try {
    const { paymentPayload, paymentRequirements } = JSON.parse(body);
    answer = await facilitator.verify(paymentPayload, paymentRequirements);
    if (!answer.isValid) status = 400; // the benchmark sends good payments only
  } catch (error) {
    status = 500;
    answer = { error: error.message };
  }
  const doc = JSON.stringify(answer);
  response.writeHead(status, { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(doc) });
  response.end(doc);
});
server.listen(0, "127.0.0.1", () => console.log(`127.0.0.1:${server.address().port}`));
