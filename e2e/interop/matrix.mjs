// The matrix: who pays whom, in which version. Counts are written out so that a lost row is noticed.
import { readFileSync } from "node:fs";

export const expectedRows = 15;

export const clients = {
  fetch: { name: "@x402/fetch", folder: "v2", program: "fetch.mjs" },
  axios: { name: "@x402/axios", folder: "v2-axios", program: "axios.mjs" },
  legacy: { name: "x402-fetch", folder: "v1", program: "fetch.mjs" },
};

export const sellers = {
  tollgate: { name: "Tollgate" },
  express: { name: "@x402/express", folder: "v2", program: "express.mjs" },
  legacyExpress: { name: "x402-express", folder: "v1", program: "express.mjs" },
};

const pay = (client, version, method, seller) => ({ client, version, scheme: "exact", method, seller });

/** Honest payments. */
export const payments = [
  pay("fetch", 2, "GET", "tollgate"),
  pay("fetch", 2, "POST", "tollgate"),
  pay("axios", 2, "GET", "tollgate"),
  pay("axios", 2, "POST", "tollgate"),
  pay("legacy", 1, "GET", "tollgate"),
  pay("legacy", 1, "POST", "tollgate"),
  pay("fetch", 2, "GET", "express"),
  pay("fetch", 2, "POST", "express"),
  pay("axios", 2, "GET", "express"),
  pay("legacy", 1, "GET", "legacyExpress"),
  pay("fetch", 1, "GET", "legacyExpress"),
];

/**
 * Payments of the list above, sent to our paywall once more by hand. They must buy nothing and move nothing.
 * An answer is the stored response, 409 or 410: never 402, which would ask to pay again.
 */
export const replays = [
  { of: payments[0], what: "same payment again", as: 2 },
  { of: payments[0], what: "same payment as v1", as: 1 },
  { of: payments[1], what: "same payment, other body", as: 2, body: { city: "Basel" }, status: [409] },
  { of: payments[4], what: "same payment again", as: 1 },
];

/** The version of a client or server that is installed, which is what the matrix runs. */
export function installedVersion({ name, folder }) {
  const manifest = new URL(`${folder}/node_modules/${name}/package.json`, import.meta.url);
  return JSON.parse(readFileSync(manifest, "utf8")).version;
}
