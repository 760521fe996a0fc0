// Runs the interop matrix on a fresh sandbox: official clients and servers against Tollgate.
//
//   node run.mjs --sandbox <program> [--update-docs] [--peaceful]
//
// The sandbox is hostile: it settles late, replaces blocks, and now and then answers 503 settlement_pending. The
// official clients hand a 503 to their caller instead of asking again, so the matrix is that caller: it sends the very
// request that they sent once more, with the same payment. --peaceful leaves all that out.
//
// Prints one row per client, version, scheme, method and seller, and writes them to e2e/out/interop.md. A row passes
// when the buyer has the content and a receipt, the chain shows exactly one transfer of exactly the price, or by upto of
// exactly the charge, from the payer to the seller, in the transaction that the receipt names, and the seller's handler
// ran exactly once.
// Exits 1 if a row fails, if a row is missing, if a log holds a payment, or if the table in docs/interop.md is
// out of date.
import { copyFile, mkdir, mkdtemp, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { TokenChain } from "./chain.mjs";
import { Service, runNode } from "./child.mjs";
import { clients, expectedRows, installedVersion, payments, replays, sellers, sponsoring } from "./matrix.mjs";
import { approvalIn, paidProblems, replayProblems } from "./judge.mjs";
import { markdown, plain, replaceBetweenMarkers } from "./table.mjs";
import { askPrice, decodeHeader, encodeHeader, sendPayment } from "./wire.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const docsPage = join(here, "..", "..", "docs", "interop.md");
const outDir = join(here, "..", "out", "interop"); // the logs of the last run
const requestBody = { city: "Bern" };
const hostility = ["--hostile", "--seed", "27"]; // a seed by which the first settlement is said to be pending
const askAgainFor = 30_000; // ms
let askedAgain = 0; // how many answers said that a settlement is pending

const { values: options } = parseArgs({
  options: {
    sandbox: { type: "string" },
    "update-docs": { type: "boolean", default: false },
    peaceful: { type: "boolean", default: false },
  },
});
if (!options.sandbox) throw new Error("say which sandbox program to run: --sandbox <program>");

await mkdir(outDir, { recursive: true });
for (const log of await logs(outDir)) await rm(log);
const running = [];
const dataDir = await mkdtemp(join(tmpdir(), "tollgate-interop-"));
for (const signal of ["SIGINT", "SIGTERM"]) {
  process.once(signal, () => cleanUp().finally(() => process.exit(1)));
}

let rows = [];
try {
  rows = await runMatrix();
} finally {
  await cleanUp();
}
process.exitCode = await conclude(rows);

async function runMatrix() {
  const sandbox = await start("sandbox", "sandbox", options.sandbox, [
    "--json", "--ephemeral-ports", "--data", dataDir, ...(options.peaceful ? [] : hostility),
  ]);
  if (!options.peaceful && !sandbox.hostile) throw new Error("the sandbox is not hostile");
  const shops = await openShops(sandbox);

  const done = new Map();
  const rows = [];
  for (const payment of payments) {
    const row = await payOnce(worldOf(sandbox, shops, payment), payment);
    done.set(payment, row);
    rows.push(row);
  }
  for (const replay of replays) {
    rows.push(await replayOnce(worldOf(sandbox, shops, replay.of), replay, done.get(replay.of)));
  }
  return rows;
}

/** The world as a payment sees it: who pays, and in which token on which chain. */
function worldOf(sandbox, shops, { way, payer: label }) {
  const payer = sandbox.accounts.find((account) => account.label === label);
  if (!payer) throw new Error(`the sandbox lists no account labelled "${label}"`);
  const token = way.plain ? sandbox.plain_token : sandbox.token;
  return { sandbox, shops, payer, token, chain: new TokenChain(sandbox.rpc_url, token) };
}

/** Where each seller takes money and where it says how often its handler ran. */
async function openShops(sandbox) {
  const env = { FACILITATOR_URL: sandbox.facilitator_url, PAY_TO: sandbox.pay_to, PRICE: "$0.001", PLAIN_TOKEN: sandbox.plain_token };
  const shops = {
    tollgate: {
      url: (payment) => sandbox.api_url + (permit2Path(payment) ?? (payment.method === "POST" ? "/echo" : "/weather")),
      grantsUrl: `${sandbox.api_url}/_sandbox/grants`,
    },
  };
  for (const [key, { name, folder, program, charge }] of Object.entries(sellers)) {
    if (!program) continue;
    const ready = await start(name, key, process.execPath, [join(here, folder, program)], {
      ...env,
      ...(charge && { CHARGE: String(charge) }),
    });
    shops[key] = { url: (payment) => ready.url + (permit2Path(payment) ?? "/report"), grantsUrl: ready.grants_url };
  }
  return shops;
}

/** Where every seller takes payments by Permit2, or undefined for other payments. */
function permit2Path({ way }) {
  if (way.plain) return "/ferry";
  if (way.permit2) return way.scheme === "upto" ? "/quota" : "/tides";
}

async function payOnce(world, payment) {
  const { client, version, method, seller } = payment;
  const { folder, program } = clients[client];
  const shop = world.shops[seller];
  const url = shop.url(payment);
  const body = method === "POST" ? requestBody : undefined;

  if (payment.way.permit2 && !payment.way.sponsored) await approve(world);
  const before = await snapshot(world, shop);
  let asked;
  let answer;
  try {
    asked = await askPrice({ url, method, body });
    answer = await runNode(join(here, folder, program), {
      RESOURCE_URL: url,
      METHOD: method,
      RPC_URL: world.sandbox.rpc_url,
      PRIVATE_KEY: world.payer.private_key,
      ...(payment.way.plain && { ALLOWED_TOKEN: world.token }),
      ...(body && { BODY: JSON.stringify(body) }),
    });
    if (seller === "tollgate") answer = await askAgain({ url, method, body }, version, answer);
    if (!options.peaceful && answer.receipt?.transaction) await buried(world.chain, answer.receipt.transaction);
  } catch (error) {
    answer = { error: error.message };
  }
  const change = await changeSince(world, shop, before, answer.receipt?.transaction);
  const problems = paidProblems({ payment, charge: sellers[seller].charge, asked, answer, before, change, world, body });
  return toRow({ payment, answer, change, problems, request: { url, method, body }, what: "pays" });
}

/** Sees to it that Permit2 may move what the payer has to pay, as payers do once and for all. */
async function approve({ sandbox, token, chain, payer }) {
  if ((await chain.allowance(payer.address, await chain.height())) >= BigInt(sandbox.price)) return;
  const { transaction } = await runNode(join(here, "v2", "approve.mjs"), {
    TOKEN: token,
    RPC_URL: sandbox.rpc_url,
    PRIVATE_KEY: payer.private_key,
  });
  await buried(chain, transaction);
}

/** Sends the request that a client made once more, as it was, for as long as the answer is that it is not settled yet. */
async function askAgain(request, version, answer) {
  const { payment } = answer;
  const deadline = Date.now() + askAgainFor;
  while (answer.status === 503 && answer.receipt?.errorReason === "settlement_pending" && payment && Date.now() < deadline) {
    askedAgain += 1;
    await sleep(1000 * Number(answer.headers["retry-after"] ?? 1));
    answer = { ...(await sendPayment(request, version, payment.value)), payment };
  }
  return answer;
}

/** Waits until a block follows that of a transaction, which a hostile chain then leaves alone. */
async function buried(chain, transaction) {
  const deadline = Date.now() + askAgainFor;
  for (;;) {
    const block = await chain.blockOf(transaction);
    if (block !== null && (await chain.height()) > block) return;
    if (Date.now() > deadline) throw new Error(`transaction ${transaction} is not in a block that another one follows`);
    await sleep(50);
  }
}

async function replayOnce(world, replay, first) {
  const shop = world.shops[replay.of.seller];
  const before = await snapshot(world, shop);
  let answer;
  try {
    if (!first.answer.payment) throw new Error("the payment to send again was never made");
    const request = { ...first.request, body: replay.body ?? first.request.body };
    answer = await sendPayment(request, replay.as, dressAs(replay, first.answer.payment, world.sandbox));
  } catch (error) {
    answer = { error: error.message };
  }
  const change = await changeSince(world, shop, before);
  const problems = replayProblems({ replay, first: first.answer, answer, change });
  const payment = { ...replay.of, client: null, version: replay.as };
  return toRow({ payment, answer, change, problems, what: replay.what });
}

/** The value of the payment header for one protocol version. The signed data says nothing of the version. */
function dressAs({ of, as }, { value }, sandbox) {
  if (of.version === as) return value;
  const { accepted, payload } = decodeHeader(value);
  return encodeHeader({ x402Version: 1, scheme: accepted.scheme, network: sandbox.network_v1, payload });
}

async function snapshot({ chain, payer, sandbox }, shop) {
  const height = await chain.height();
  return {
    height,
    payer: await chain.balance(payer.address, height),
    ether: await chain.ether(payer.address, height),
    allowance: await chain.allowance(payer.address, height),
    seller: await chain.balance(sandbox.pay_to, height),
    grants: await grantsOf(shop),
  };
}

async function changeSince(world, shop, before, transaction) {
  const after = await snapshot(world, shop);
  return {
    payer: after.payer - before.payer,
    ether: after.ether - before.ether,
    seller: after.seller - before.seller,
    grants: after.grants - before.grants,
    transfers: await world.chain.transfersFrom(world.payer.address, before.height, after.height),
    inTransaction: transaction ? await world.chain.transfersIn(transaction) : null,
  };
}

async function grantsOf(shop) {
  const response = await fetch(shop.grantsUrl);
  if (!response.ok) throw new Error(`${shop.grantsUrl} answered ${response.status}`);
  const { grants } = await response.json();
  if (!Number.isSafeInteger(grants)) throw new Error(`${shop.grantsUrl} answered no number of grants`);
  return grants;
}

function toRow({ payment, answer, change, problems, request, what }) {
  const { client, version, way, method, seller } = payment;
  return {
    client: client ? clients[client].name : "by hand",
    package: client ? installedVersion(clients[client]) : "",
    version: `v${version}`,
    scheme: way.name,
    method,
    seller: sellerName(sellers[seller]),
    what,
    status: answer.status ?? "none",
    receipt: answer.receipt?.transaction ?? "none",
    payer: signed(change.payer),
    payTo: signed(change.seller),
    grants: signed(change.grants),
    result: problems.length === 0 ? "PASS" : "FAIL",
    problems,
    answer,
    request,
  };
}

function sellerName(seller) {
  return seller.program ? `${seller.name} ${installedVersion(seller)}` : seller.name;
}

function signed(n) {
  return n > 0 ? `+${n}` : `${n}`;
}

async function conclude(rows) {
  await writeFile(join(outDir, "..", "interop.md"), markdown(rows, { receipts: true }));
  process.stdout.write(plain(rows));

  const failed = rows.filter((row) => row.result !== "PASS");
  for (const row of failed) {
    console.log(`\n${row.client} ${row.version} ${row.scheme} ${row.method} ${row.seller}, ${row.what}:`);
    for (const problem of row.problems) console.log(`  ${problem}`);
  }
  let ok = failed.length === 0;
  if (!ok) console.log("\nThe sandbox and the servers logged to e2e/out/interop/.");
  if (rows.length !== expectedRows) {
    console.log(`\n${rows.length} rows where the matrix has ${expectedRows}`);
    ok = false;
  }
  for (const log of await logsThatTell(rows)) {
    console.log(`\n${log} holds a payment that a client sent`);
    ok = false;
  }
  if (!options.peaceful) {
    console.log(`\n${askedAgain} answers were 503 settlement_pending; the same payment was sent again`);
    ok &&= askedAgain > 0;
  }
  console.log(`\n${rows.length - failed.length} passed, ${failed.length} failed`);
  return ok && (await keepDocs(markdown(rows, { receipts: false }))) ? 0 : 1;
}

/** The logs that hold a payment header's value or what was signed in it. Whoever reads either could send it again. */
async function logsThatTell(rows) {
  const payments = rows.flatMap((row) => row.answer.payment?.value ?? []);
  const secrets = payments.flatMap((value) => [value, ...signaturesIn(decodeHeader(value))]);
  const telling = [];
  for (const log of await logs(outDir)) {
    const text = await readFile(log, "utf8");
    if (secrets.some((secret) => text.includes(secret))) telling.push(log);
  }
  return telling;
}

/** The signature of a payment, and that of the approval that may have come with it. */
function signaturesIn({ payload, extensions }) {
  return [payload.signature, ...Object.values(sponsoring).map((name) => approvalIn(extensions, name) ?? [])].flat();
}

/** Every log file in a folder and below. */
async function logs(folder) {
  const entries = await readdir(folder, { recursive: true });
  return entries.filter((entry) => entry.endsWith(".log")).map((entry) => join(folder, entry));
}

/** Writes the table into the developers' docs, or checks that it is the one already there. */
async function keepDocs(table) {
  const page = await readFile(docsPage, "utf8");
  const wanted = replaceBetweenMarkers(page, table);
  if (page === wanted) return true;
  if (options["update-docs"]) {
    await writeFile(docsPage, wanted);
    return true;
  }
  console.log("the table in docs/interop.md is out of date: run e2e/interop.sh --update-docs and commit it");
  return false;
}

async function start(name, key, command, args, env) {
  const { service, ready } = await Service.start(name, join(outDir, `${key}.log`), command, args, env);
  running.push(service);
  return ready;
}

async function cleanUp() {
  for (const service of running.splice(0).reverse()) await service.stop();
  for (const log of await logs(dataDir)) await copyFile(log, join(outDir, `sandbox-${basename(log)}`));
  await rm(dataDir, { recursive: true, force: true });
}
