// Pays for one request with x402-fetch, the client of protocol v1.
import { createSigner, decodeXPaymentResponse, wrapFetchWithPayment } from "x402-fetch";
import { decodeBody, keyFromEnv, paymentOf, report, requestFromEnv } from "../report.mjs";

const signer = await createSigner("base-sepolia", keyFromEnv());
const { url, method, body, headers } = requestFromEnv();

let payment = null;
const recordingFetch = (input, init) => {
  payment = paymentOf(new Headers(init?.headers)) ?? payment;
  return fetch(input, init);
};

const payingFetch = wrapFetchWithPayment(recordingFetch, signer);

const response = await payingFetch(url, { method, body, headers });
const receipt = response.headers.get("X-PAYMENT-RESPONSE");
report({
  status: response.status,
  headers: Object.fromEntries(response.headers),
  body: decodeBody(await response.text()),
  receipt: receipt === null ? null : decodeXPaymentResponse(receipt),
  payment,
});
