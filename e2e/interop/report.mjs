// The line of JSON by which a client tells the matrix what one call came to.

/**
 * Prints the outcome of one call.
 *
 * @param {object} outcome
 * @param {number} outcome.status        HTTP status of the last answer
 * @param {object} outcome.headers       its headers, names in lower case
 * @param {unknown} outcome.body         its body, decoded where it is JSON
 * @param {object|null} outcome.receipt  the receipt as the client's own library decodes it
 * @param {{header: string, value: string}|null} outcome.payment  what the client sent to pay
 */
export function report(outcome) {
  process.stdout.write(JSON.stringify(outcome) + "\n");
}

/** Returns the payment that headers carry, or null. */
export function paymentOf(headers) {
  for (const header of ["PAYMENT-SIGNATURE", "X-PAYMENT"]) {
    const value = headers.get(header);
    if (value !== null) return { header, value };
  }
  return null;
}

/** Decodes text as JSON, or returns it as it is. */
export function decodeBody(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** The request that the environment asks for: RESOURCE_URL, METHOD and, for a body, BODY (JSON text). */
export function requestFromEnv() {
  const { RESOURCE_URL: url, METHOD: method = "GET", BODY: body } = process.env;
  if (!url) throw new Error("set RESOURCE_URL to the address to pay for");
  return { url, method, body, headers: body === undefined ? {} : { "content-type": "application/json" } };
}

/** The address of a node of the payer's network, from RPC_URL. */
export function nodeFromEnv() {
  const { RPC_URL: url } = process.env;
  if (!url) throw new Error("set RPC_URL to the address of a node");
  return url;
}

/** The payer's private key, from PRIVATE_KEY. */
export function keyFromEnv() {
  const { PRIVATE_KEY: key } = process.env;
  if (!key) throw new Error("set PRIVATE_KEY to the payer's key (0x and 64 hex digits)");
  return key;
}
