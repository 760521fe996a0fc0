// The protocol as the judge reads it: plain requests, header by header, without any x402 library.
import { decodeBody } from "./report.mjs";

const names = {
  1: { payment: "X-PAYMENT", receipt: "X-PAYMENT-RESPONSE" },
  2: { payment: "PAYMENT-SIGNATURE", receipt: "PAYMENT-RESPONSE" },
};

export const encodeHeader = (value) => Buffer.from(JSON.stringify(value)).toString("base64");
export const decodeHeader = (header) => JSON.parse(Buffer.from(header, "base64").toString("utf8"));

/** What a seller asks of someone who has not paid: the answer, its offers in each version it speaks, its extensions. */
export async function askPrice(request) {
  const response = await send(request, {});
  const required = response.headers.get("PAYMENT-REQUIRED");
  const body = await response.json().catch(() => ({}));
  const asked = required === null ? { accepts: [] } : decodeHeader(required);
  return {
    status: response.status,
    cacheControl: response.headers.get("Cache-Control") ?? "",
    offers: {
      1: body.x402Version === 1 ? body.accepts : [],
      2: asked.accepts,
    },
    extensions: asked.extensions ?? {},
  };
}

/** Sends a request with a payment header and returns what came back, as the clients report it. */
export async function sendPayment(request, version, payment) {
  const response = await send(request, { [names[version].payment]: payment });
  const receipt = response.headers.get(names[version].receipt);
  return {
    status: response.status,
    headers: Object.fromEntries(response.headers),
    body: decodeBody(await response.text()),
    receipt: receipt === null ? null : decodeHeader(receipt),
  };
}

function send({ url, method, body }, headers) {
  return fetch(url, {
    method,
    headers: { accept: "application/json", ...(body && { "content-type": "application/json" }), ...headers },
    ...(body && { body: JSON.stringify(body) }),
  });
}
