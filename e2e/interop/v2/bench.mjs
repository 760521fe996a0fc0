// Pays COUNT times for one resource with @x402/fetch, one after the other, and prints how long a whole paid call took:
// the unpaid request, the signature and the paid request.
import { wrapFetchWithPaymentFromConfig } from "@x402/fetch";
import { ExactEvmScheme } from "@x402/evm/exact/client";
import { privateKeyToAccount } from "viem/accounts";

const { RESOURCE_URL: url, PRIVATE_KEY: key, COUNT: count } = process.env;
const pay = wrapFetchWithPaymentFromConfig(fetch, {
  schemes: [{ network: "eip155:*", client: new ExactEvmScheme(privateKeyToAccount(key)) }],
});

const times = [];
for (let i = -20; i < Number(count); i++) {
  const start = performance.now();
  const response = await pay(url);
  await response.arrayBuffer();
  if (response.status !== 200) throw new Error(`paid call answered with ${response.status}`);
  if (i >= 0) times.push(performance.now() - start);
}
times.sort((a, b) => a - b);
const at = (share) => times[Math.min(times.length - 1, Math.floor(times.length * share))];
console.log(JSON.stringify({ count: times.length, p50_ms: at(0.5), p99_ms: at(0.99) }));
