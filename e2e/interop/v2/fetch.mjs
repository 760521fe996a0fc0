// Pays for one request with @x402/fetch, in protocol v2 and, where the seller only speaks v1, in v1.
import { decodePaymentResponseHeader, wrapFetchWithPaymentFromConfig } from "@x402/fetch";
import { ExactEvmScheme } from "@x402/evm/exact/client";
import { ExactEvmSchemeV1 } from "@x402/evm/exact/v1/client";
import { UptoEvmScheme } from "@x402/evm/upto/client";
import { privateKeyToAccount } from "viem/accounts";
import { decodeBody, keyFromEnv, nodeFromEnv, paymentOf, report, requestFromEnv } from "../report.mjs";

const account = privateKeyToAccount(keyFromEnv());
const chain = { rpcUrl: nodeFromEnv() }; // where it looks whether Permit2 has an allowance, and for nonces
const { url, method, body, headers } = requestFromEnv();
const { ALLOWED_TOKEN: allowed } = process.env; // one that it does not know by itself

let payment = null;
const recordingFetch = (request) => {
  payment = paymentOf(request.headers) ?? payment;
  return fetch(request);
};

const payingFetch = wrapFetchWithPaymentFromConfig(recordingFetch, {
  schemes: [
    { network: "eip155:*", client: new ExactEvmScheme(account, chain) },
    { network: "eip155:*", client: new UptoEvmScheme(account, chain) },
    { network: "base-sepolia", client: new ExactEvmSchemeV1(account), x402Version: 1 },
  ],
  ...(allowed && { spendControls: { allowedAssets: [{ network: "eip155:*", asset: allowed }] } }),
});

const response = await payingFetch(url, { method, body, headers });
const receipt = response.headers.get("PAYMENT-RESPONSE") ?? response.headers.get("X-PAYMENT-RESPONSE");
report({
  status: response.status,
  headers: Object.fromEntries(response.headers),
  body: decodeBody(await response.text()),
  receipt: receipt === null ? null : decodePaymentResponseHeader(receipt),
  payment,
});
