// The matrix: who pays whom, in which version. Counts are written out so that a lost row is noticed.
import { readFileSync } from "node:fs";

export const expectedRows = 29;

export const clients = {
  fetch: { name: "@x402/fetch", folder: "v2", program: "fetch.mjs" },
  axios: { name: "@x402/axios", folder: "v2-axios", program: "axios.mjs" },
  legacy: { name: "x402-fetch", folder: "v1", program: "fetch.mjs" },
};

/** Who sells. By upto a seller charges its charge, in atomic units, or where it has none the whole price. */
export const sellers = {
  tollgate: { name: "Tollgate", charge: 400n },
  express: { name: "@x402/express", folder: "v2", program: "express.mjs", charge: 400n },
  legacyExpress: { name: "x402-express", folder: "v1", program: "express.mjs" },
};

/** The extensions by which payers send an approval for Permit2 along: a permit (EIP-2612), or a transaction of their own. */
export const sponsoring = { permit: "eip2612GasSponsoring", transaction: "erc20ApprovalGasSponsoring" };

/**
 * How the money may move: by which scheme, whether by Permit2, and by which extension the payer has to send an approval
 * along because Permit2 has no allowance yet. plain is a token that knows nothing but ERC-20.
 */
export const ways = {
  transfer: { name: "exact", scheme: "exact" },
  permit: { name: "exact permit2", scheme: "exact", permit2: true },
  sponsoredPermit: { name: "exact permit2 sponsored", scheme: "exact", permit2: true, sponsored: sponsoring.permit },
  upto: { name: "upto permit2", scheme: "upto", permit2: true },
  rawPermit: { name: "exact permit2 approved", scheme: "exact", permit2: true, plain: true, sponsored: sponsoring.transaction },
  sponsoredUpto: { name: "upto permit2 sponsored", scheme: "upto", permit2: true, sponsored: sponsoring.permit },
};

const pay = (client, version, method, seller, way = ways.transfer, payer = "payer") => ({ client, version, method, seller, way, payer });

/**
 * Honest payments. Sponsored ones need a payer whose allowance for Permit2 is too small. Before the first one by Permit2
 * that is not sponsored the payer approves it, for good: so the sponsored ones come first. A transaction of the payer's
 * own approves it for good, too: so each of those has another payer.
 */
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
  pay("fetch", 2, "GET", "tollgate", ways.sponsoredPermit),
  pay("fetch", 2, "GET", "express", ways.sponsoredPermit),
  pay("fetch", 2, "GET", "tollgate", ways.sponsoredUpto),
  pay("fetch", 2, "GET", "express", ways.sponsoredUpto),
  pay("fetch", 2, "GET", "tollgate", ways.rawPermit),
  pay("fetch", 2, "GET", "express", ways.rawPermit, "payer2"),
  pay("fetch", 2, "GET", "tollgate", ways.permit),
  pay("fetch", 2, "GET", "express", ways.permit),
  pay("fetch", 2, "GET", "tollgate", ways.upto),
  pay("fetch", 2, "GET", "express", ways.upto),
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
  { of: boughtHere(ways.sponsoredPermit), what: "same payment again", as: 2 },
  { of: boughtHere(ways.rawPermit), what: "same payment again", as: 2 },
  { of: boughtHere(ways.permit), what: "same payment again", as: 2 },
  { of: boughtHere(ways.upto), what: "same payment again", as: 2 },
];

function boughtHere(way) {
  return payments.find((payment) => payment.way === way && payment.seller === "tollgate");
}

/** The version of a client or server that is installed, which is what the matrix runs. */
export function installedVersion({ name, folder }) {
  const manifest = new URL(`${folder}/node_modules/${name}/package.json`, import.meta.url);
  return JSON.parse(readFileSync(manifest, "utf8")).version;
}
