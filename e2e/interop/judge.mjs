// What makes a row pass. Each function returns the list of what is wrong, empty for a pass.
import { isDeepStrictEqual } from "node:util";
import { sponsoring } from "./matrix.mjs";
import { decodeHeader } from "./wire.mjs";

/** What an approval costs a payer who sends it as a transaction at most, in wei. */
const approvalCost = 100_000_000_000_000n;

const sameAddress = (a, b) => typeof a === "string" && typeof b === "string" && a.toLowerCase() === b.toLowerCase();
const networkNames = (sandbox) => ({ 1: sandbox.network_v1, 2: sandbox.network });

/**
 * Judges an honest payment. charge is what its seller charges by upto, undefined for all of the price; before is how
 * things were when the payer first asked.
 */
export function paidProblems({ payment, charge, asked, answer, before, change, world, body }) {
  if (answer.error) return [answer.error];
  const { sandbox, token, payer } = world;
  const problems = [];
  const expect = (ok, message) => { if (!ok) problems.push(message); };
  const network = networkNames(sandbox)[payment.version];

  const offer = asked.offers[payment.version]?.find((o) => o.scheme === payment.way.scheme && o.network === network);
  expect(asked.status === 402, `without payment the answer is ${asked.status}, not 402`);
  if (!offer) return [...problems, `the 402 offers no ${payment.way.scheme} on ${network} in v${payment.version}`];
  const price = BigInt(offer.amount ?? offer.maxAmountRequired);
  const charged = (payment.way.scheme === "upto" && charge) || price;
  expect(sameAddress(offer.payTo, sandbox.pay_to), `the offer pays ${offer.payTo}, not ${sandbox.pay_to}`);
  expect(sameAddress(offer.asset, token), `the offer names token ${offer.asset}, not ${token}`);
  expect(payment.method !== "GET" || price === BigInt(sandbox.price), `the offer asks ${price}, not ${sandbox.price}`);

  expect(answer.status === 200, `the paid answer is ${answer.status}, not 200`);
  expect(typeof answer.body === "object" && answer.body !== null, `the paid body is ${JSON.stringify(answer.body)}`);
  if (body) expect(JSON.stringify(answer.body).includes(JSON.stringify(body)), "the paid answer does not echo the body");
  problems.push(...receiptProblems(answer.receipt, network, payer.address));

  if (payment.seller === "tollgate") {
    const other = payment.version === 2 ? 1 : 2;
    const both = !payment.way.permit2; // v1 knows no Permit2
    expect(asked.offers[other].length > 0 === both, `the 402 has ${asked.offers[other].length} offers in v${other}`);
    expect(/no-store/.test(asked.cacheControl), `the 402 may be cached: "${asked.cacheControl}"`);
    const cacheControl = answer.headers["cache-control"] ?? "";
    expect(/no-store|private/.test(cacheControl), `shared caches may keep the paid answer: "${cacheControl}"`);
  }

  if (payment.way.permit2) problems.push(...permit2Problems({ payment, offer, asked, answer, before, price }));
  if (payment.way.scheme === "upto") {
    expect(answer.receipt?.amount === String(charged), `the receipt says that ${answer.receipt?.amount} was charged, not ${charged}`);
  }
  problems.push(...moneyProblems({ change, charged, payer, sandbox, transaction: answer.receipt?.transaction }));
  const paysGas = payment.way.sponsored === sponsoring.transaction; // for its approval
  expect(paysGas ? change.ether < 0n && change.ether > -approvalCost : change.ether === 0n, `the payer's ether changed by ${change.ether} wei`);
  expect(change.grants === 1, `the handler ran ${change.grants} times for one payment`);
  return problems;
}

// Permit2 is really what paid, and a sponsored approval was neither needless nor missing.
function permit2Problems({ payment, offer, asked, answer, before, price }) {
  const problems = [];
  const expect = (ok, message) => { if (!ok) problems.push(message); };
  const { payload, extensions } = answer.payment ? decodeHeader(answer.payment.value) : { payload: {} };
  const { sponsored, plain } = payment.way;
  const asks = plain ? sponsoring.transaction : sponsoring.permit;
  expect(offer.extra?.assetTransferMethod === "permit2", `the offer is paid by ${offer.extra?.assetTransferMethod}, not permit2`);
  expect(asked.extensions[asks] !== undefined, `the 402 does not say ${asks}`);
  expect(!plain || asked.extensions[sponsoring.permit] === undefined, `the 402 says ${sponsoring.permit} of a token without EIP-2612`);
  expect(payload.permit2Authorization !== undefined, "the client signed no permit");
  expect((before.allowance < price) === Boolean(sponsored), `Permit2 had an allowance of ${before.allowance}`);
  const approvals = Object.values(sponsoring).filter((name) => approvalIn(extensions, name) !== undefined);
  expect(isDeepStrictEqual(approvals, sponsored ? [sponsored] : []), `the client sent approvals along: ${approvals.join(", ") || "none"}`);
  return problems;
}

/** What the payer signed in an extension of sponsoring: a signature, or a whole transaction. */
export function approvalIn(extensions, name) {
  const info = extensions?.[name]?.info;
  return info?.signature ?? info?.signedTransaction;
}

function receiptProblems(receipt, network, payer) {
  if (!receipt) return ["there is no receipt"];
  const problems = [];
  if (receipt.success !== true) problems.push(`the receipt says success: ${receipt.success}`);
  if (!/^0x[0-9a-f]{64}$/i.test(receipt.transaction ?? "")) problems.push(`the receipt names transaction "${receipt.transaction}"`);
  if (receipt.network !== network) problems.push(`the receipt names network "${receipt.network}", not "${network}"`);
  if (!sameAddress(receipt.payer, payer)) problems.push(`the receipt names payer ${receipt.payer}, not ${payer}`);
  return problems;
}

// The payer's own Transfer log decides. Balances alone would not tell one payment from another's.
function moneyProblems({ change, charged, payer, sandbox, transaction }) {
  const problems = [];
  const isThePayment = (t) =>
    sameAddress(t.from, payer.address) && sameAddress(t.to, sandbox.pay_to) && t.value === charged &&
    sameAddress(t.transaction, transaction);
  const told = (transfers) => transfers?.map((t) => `${t.value} from ${t.from} to ${t.to} in ${t.transaction}`).join("; ");
  if (change.inTransaction?.length !== 1 || !change.inTransaction.every(isThePayment)) {
    problems.push(`the receipt's transaction should hold one transfer of ${charged} to ${sandbox.pay_to}, and holds: ${told(change.inTransaction) || "none"}`);
  }
  if (change.transfers.length !== 1 || !change.transfers.every(isThePayment)) {
    problems.push(`the payer should have made one transfer of ${charged}, and made: ${told(change.transfers) || "none"}`);
  }
  if (change.payer !== -charged) problems.push(`the payer's balance changed by ${change.payer}, not ${-charged}`);
  if (change.seller !== charged) problems.push(`the seller's balance changed by ${change.seller}, not ${charged}`);
  return problems;
}

/** Judges a payment that was sent again: it must buy nothing, move nothing, and not be asked for again. */
export function replayProblems({ replay, first, answer, change }) {
  if (answer.error) return [answer.error];
  const problems = [];
  const allowed = replay.status ?? [200, 409, 410];
  if (!allowed.includes(answer.status)) problems.push(`the answer is ${answer.status}, not ${allowed.join(" or ")}`);
  if (answer.status === 200) problems.push(...storedProblems(first, answer));
  if (change.grants !== 0) problems.push(`the handler ran ${change.grants} more times`);
  if (change.transfers.length !== 0) problems.push(`the payer made ${change.transfers.length} more transfers`);
  if (change.payer !== 0n) problems.push(`the payer's balance changed by ${change.payer}`);
  if (change.seller !== 0n) problems.push(`the seller's balance changed by ${change.seller}`);
  return problems;
}

// A stored response is the first one, word for word, with the first receipt.
function storedProblems(first, answer) {
  const problems = [];
  if (!isDeepStrictEqual(answer.body, first.body)) problems.push("the answer is not the response that was bought");
  if (answer.receipt?.transaction !== first.receipt?.transaction) {
    problems.push(`the receipt names ${answer.receipt?.transaction}, not ${first.receipt?.transaction}`);
  }
  return problems;
}
