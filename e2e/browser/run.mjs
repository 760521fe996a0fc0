// Drives the pages of payment links in a real Chromium, as payers with a wallet, and takes pictures of every state.
//
//   node run.mjs (--server PROGRAM | --world FILE) [--only WORD] [--chromium PROGRAM]
//
// The world is one line of JSON, from a file or printed by a program that then serves until it is killed:
//
//   base      origin of the server, whose certificate need not be known; pages may ask for nothing else
//   chainId   the chain on which links are paid, with play money; network is its name for people. The server must give
//             wallets what they need to add it
//   payer     private key of an account that can pay all of them, pauper: of one that can pay none (hexadecimal)
//   open      URLs of links that can be paid once, of one offer, without fields, message or redirect; each is used by
//             one scenario (at least 12)
//   links     URLs of single links by name:
//               rich      open, with three offers: on chainId, on another EVM network that wallets can sign for and
//                         that the server does not help them to add, and one for programs only; one required field
//                         among others, a message, and a redirect to the server's own origin
//               slow, reloaded   open; the first answer to a payment is 503 with status PENDING, and the payment is
//                         settled some seconds later
//               short     open; expires within two hours
//               expired, disabled, pending, paid, unknown   in that state for as long as the run takes; unavailable:
//                         the seller cannot take payments for it now
//   hostile   URLs of open links whose texts are all hostile, and hostileTexts: how many different ones these are;
//             hostileRefused: how many others no link may have
//
// A scenario whose link is not there is left out, and said to be. The seller's outages and broken connections are made
// here, between browser and server. The run fails if a scenario does, if a page violates its policy or throws, if it
// asks another host for anything, or if it reads badly: see look.mjs. Pictures go to e2e/out/browser.
import assert from "node:assert/strict";
import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";
import { Service } from "../interop/child.mjs";
import { inspect } from "./look.mjs";
import { TestWallet, install } from "./wallet.mjs";

const out = join(dirname(fileURLToPath(import.meta.url)), "..", "out", "browser");
const patience = 20_000; // ms; for anything that a page is expected to do
const phone = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true };
const desktop = { viewport: { width: 1280, height: 860 } };

const { values: options } = parseArgs({
  options: {
    server: { type: "string" },
    world: { type: "string" },
    only: { type: "string", default: "" },
    chromium: { type: "string", default: "/usr/bin/chromium" },
  },
});

const scenarios = [];
/** needs names the link, or the list of them, that the world must have. */
const scenario = (name, run, needs = "open") => scenarios.push({ name, run, needs });

// Visits.

/** One visitor's browser profile with its wallets. close fails if anything happened that must not. */
class Visit {
  static async begin(world, browser, { wallets = [], ...settings } = {}) {
    const visit = new Visit();
    const context = await browser.newContext({ locale: "en-GB", timezoneId: "Europe/Zurich", colorScheme: "light", ignoreHTTPSErrors: true, ...settings });
    context.setDefaultTimeout(patience);
    Object.assign(visit, { world, context, wallets, complaints: [], sent: [], expected: [] });
    await context.exposeBinding("__complain", (_, text) => void visit.complaints.push(text));
    await context.addInitScript(observe);
    if (wallets.length > 0) await install(context, wallets);
    context.on("request", (request) => {
      const url = request.url();
      if (!url.startsWith(`${world.base}/`) && !url.startsWith("data:image/")) visit.complaints.push(`it asks for ${url}`);
      if (request.method() === "POST") visit.sent.push(request.headers()["payment-signature"]);
    });
    context.on("weberror", (error) => visit.complaints.push(`it throws ${error.error()}`));
    context.on("dialog", async (dialog) => {
      visit.complaints.push(`it opens a dialog: ${dialog.message()}`);
      await dialog.dismiss();
    });
    visit.page = await context.newPage();
    return visit;
  }

  async open(url) {
    const response = await this.page.goto(url);
    return response.status();
  }

  /** Waits until the page is in a state, and returns what it says. */
  async state(...names) {
    const selector = names.map((name) => `main[data-state="${name}"]`).join(", ");
    await this.page.waitForSelector(selector, { timeout: patience }).catch(async () => {
      const now = await this.page.getAttribute("main", "data-state").catch(() => "gone");
      throw new Error(`the page is not ${names.join(" or ")} but ${now}: ${await this.says().catch(() => "")}`);
    });
    return this.says();
  }

  async says() {
    return (await this.page.innerText("[role=status]")).replace(/\s+/g, " ").trim();
  }

  /** The states that the page has been in since it was loaded, with the time of each in ms. */
  history() {
    return this.page.evaluate(() => window.__states);
  }

  button(name) {
    return this.page.getByRole("button", { name });
  }

  /** Takes a picture, and complains about what can be measured. */
  async picture(name, { full = true } = {}) {
    await this.page.waitForTimeout(60); // for the style to settle
    for (const problem of await this.page.evaluate(inspect)) this.complaints.push(`${name}: ${problem}`);
    await this.page.screenshot({ path: join(out, `${name}.png`), fullPage: full, animations: "disabled" });
  }

  async close() {
    await this.context.close();
    assert.deepEqual(this.complaints, []);
  }
}

// Runs in every page before its own script.
function observe() {
  window.__states = [];
  document.addEventListener("securitypolicyviolation", (event) => {
    window.__complain(`it violates ${event.violatedDirective}: ${event.blockedURI} ${event.sample}`);
  });
  const note = () => {
    const state = document.querySelector("main")?.dataset.state;
    if (state && window.__states.at(-1)?.state !== state) window.__states.push({ state, at: performance.now() });
  };
  new MutationObserver(note).observe(document, { subtree: true, childList: true, attributes: true, attributeFilter: ["data-state"] });
}

/** Pays on an open page with a wallet that is on the right chain. */
async function payOn(visit, wallet = visit.wallets[0]) {
  await visit.state("ready");
  await visit.button(`Pay with ${wallet.name}`).click();
}

// Paying.

for (const [size, settings] of Object.entries({ phone, desktop })) {
  scenario(`${size}: wrong network, add it, switch, sign, settle, receipt`, async ({ world, begin }) => {
    const wallet = new TestWallet({ key: world.payer, chain: 1, knows: [1] });
    const visit = await begin({ ...settings, wallets: [wallet] });
    assert.equal(await visit.open(world.open.pop()), 402);
    await visit.state("ready");
    await visit.picture(`${size}-1-ready`);

    await visit.button("Pay with Fjord Wallet").click();
    assert.match(await visit.state("wrong"), new RegExp(`another network.*${world.network}`));
    await visit.picture(`${size}-2-wrong-network`);

    const sign = wallet.hold("eth_signTypedData_v4");
    await visit.button(`Switch to ${world.network}`).click();
    await visit.page.getByText("Waiting for your signature").waitFor();
    assert.deepEqual(wallet.asked.filter((m) => m.startsWith("wallet_")),
      ["wallet_switchEthereumChain", "wallet_addEthereumChain", "wallet_switchEthereumChain"]);
    await visit.picture(`${size}-3-signature`);

    sign();
    assert.match(await visit.state("settling"), /do not pay again/);
    await visit.picture(`${size}-4-settling`);
    assert.match(await visit.state("paid"), /^Paid/);
    await visit.picture(`${size}-5-paid`);
    assert.equal(wallet.signed.length, 1);
    assert.equal(visit.sent.length, 1);

    await visit.page.getByRole("link", { name: "View the receipt" }).click();
    await visit.page.waitForURL(/\/receipt\//);
    assert.match(await visit.page.innerText("main"), new RegExp(`Receipt from.*${wallet.account.address}`, "s"));
    await visit.picture(`${size}-6-receipt`);
    await visit.page.emulateMedia({ media: "print" });
    await visit.page.screenshot({ path: join(out, `${size}-7-receipt-print.png`), fullPage: true });
    await visit.page.pdf({ path: join(out, "receipt.pdf"), format: "A4" });
    assert.equal(await visit.button("Print").isVisible(), false);
  });
}

// What goes wrong.

scenario("declined: to connect, to switch, to sign; then paid", async ({ world, begin }) => {
  const wallet = new TestWallet({ key: world.payer, chain: 1 });
  const visit = await begin({ ...phone, wallets: [wallet] });
  await visit.open(world.open.pop());
  const said = new Set();
  for (const method of ["eth_requestAccounts", "wallet_switchEthereumChain", "eth_signTypedData_v4"]) {
    wallet.declines = new Set([method]);
    await visit.button("Pay with Fjord Wallet").click();
    if (method !== "eth_requestAccounts" && wallet.chain === 1) {
      await visit.state("wrong");
      await visit.button(`Switch to ${world.network}`).click();
    }
    const words = await visit.state("declined");
    assert.match(words, /You .*nothing was taken/);
    said.add(words);
    wallet.chain = method === "wallet_switchEthereumChain" ? world.chainId : wallet.chain;
  }
  assert.equal(said.size, 3);
  await visit.picture("declined");
  assert.equal(visit.sent.length, 0);
  wallet.declines.clear();
  await visit.button("Pay with Fjord Wallet").click();
  await visit.state("paid");
});

scenario("insufficient funds", async ({ world, begin }) => {
  const visit = await begin({ ...phone, wallets: [new TestWallet({ key: world.pauper, chain: world.chainId })] });
  await visit.open(world.open.pop());
  await payOn(visit);
  assert.match(await visit.state("poor"), /Not enough .* does not hold .* Nothing was taken/);
  await visit.picture("insufficient-funds");
  await visit.page.reload();
  await visit.state("ready"); // a refusal is an answer: there is nothing to wait for
});

for (const [name, { status, words }] of Object.entries({
  expired: { status: 410, words: /expired/ },
  disabled: { status: 410, words: /withdrawn/ },
  paid: { status: 200, words: /Paid/ },
  pending: { status: 402, words: /Do not pay again/ },
  unknown: { status: 404, words: /nothing to pay here/ },
  unavailable: { status: 503, words: /Nothing was taken/ },
})) {
  scenario(`${name}: says so, and offers no way to pay`, async ({ world, begin }) => {
    for (const [size, settings] of Object.entries({ phone, desktop })) {
      const visit = await begin({ ...settings, wallets: [new TestWallet({ key: world.payer, chain: world.chainId })] });
      assert.equal(await visit.open(world.links[name]), status);
      assert.match(await visit.state(name), words);
      await visit.page.waitForTimeout(300);
      assert.equal(await visit.page.getByRole("button", { name: /^Pay/ }).count(), 0);
      await visit.picture(`${name}-${size}`);
    }
  }, name);
}

scenario("expires while the page is open", async ({ world, begin }) => {
  const visit = await begin({ ...phone, wallets: [new TestWallet({ key: world.payer, chain: world.chainId })] });
  await visit.page.clock.install();
  await visit.open(world.links.short);
  await visit.state("ready");
  await visit.page.clock.fastForward("02:00:00");
  assert.match(await visit.state("expired"), /nothing was taken/);
  assert.equal(await visit.page.getByRole("button", { name: /^Pay/ }).count(), 0);
}, "short");

scenario("already paid, by somebody who was faster", async ({ world, begin }) => {
  const url = world.open.pop();
  const slow = new TestWallet({ key: world.payer, chain: world.chainId });
  const [late, quick, later] = [
    await begin({ ...phone, wallets: [slow] }),
    await begin({ ...phone, wallets: [new TestWallet({ key: world.payer, chain: world.chainId })] }),
    await begin({ ...phone, wallets: [new TestWallet({ key: world.payer, chain: world.chainId })] }),
  ];
  for (const visit of [late, quick, later]) await visit.open(url);
  const sign = slow.hold("eth_signTypedData_v4");
  await payOn(late);
  await late.page.getByText("Waiting for your signature").waitFor();
  await payOn(quick);
  await quick.state("paid");
  sign(); // signed and sent, and refused
  assert.match(await late.state("taken"), /already been paid.*nothing was taken from you/);
  await late.picture("already-paid");
  await payOn(later); // not even asked to sign
  await later.state("taken");
  assert.ok(!later.wallets[0].asked.includes("eth_signTypedData_v4"));
});

scenario("money that came too late is owed back, and the page says so", async ({ world, begin }) => {
  for (const [refundDue, state, words] of [[true, "refund-due", /owes you a refund.*Do not pay again/], [false, "taken", /answer: it has been refunded/]]) {
    const visit = await begin({ ...phone, wallets: [new TestWallet({ key: world.payer, chain: world.chainId })] });
    const url = world.open.at(-1);
    await visit.open(url);
    await visit.page.route(url, (route) => (route.request().method() === "POST"
      ? route.fulfill({ status: 409, json: { error: "it has been refunded", status: "PAID", refundDue, receiptUrl: `${url}/receipt/00000000000000000000000000` } })
      : route.continue()));
    await payOn(visit);
    const said = await visit.state(state);
    assert.match(said, words);
    assert.doesNotMatch(said, /nothing was taken/i);
    assert.equal(await visit.page.getByRole("button", { name: /^Pay/ }).count(), 0);
    await visit.page.getByRole("link", { name: "Open the receipt" }).waitFor();
    await visit.picture(`too-late-${state}`);
  }
});

scenario("seller down before anything is signed", async ({ world, begin }) => {
  const visit = await begin({ ...phone, wallets: [new TestWallet({ key: world.payer, chain: world.chainId })] });
  const url = world.open.pop();
  await visit.open(url);
  await visit.page.route(url, (route) => route.fulfill({ status: 502, contentType: "text/html", body: "Bad gateway" }));
  await payOn(visit);
  assert.match(await visit.state("unavailable"), /Nothing was taken, and you have signed nothing/);
  await visit.picture("seller-down-before");
  assert.ok(!visit.wallets[0].asked.includes("eth_signTypedData_v4"));
  await visit.page.unroute(url);
  await visit.button("Pay with Fjord Wallet").click();
  await visit.state("paid");
});

scenario("seller down after the signature: the same payment is sent again", async ({ world, begin }) => {
  const visit = await begin({ ...desktop, wallets: [new TestWallet({ key: world.payer, chain: world.chainId })] });
  const url = world.open.pop();
  await visit.open(url);
  await visit.page.route(url, (route) => (route.request().method() === "POST"
    ? route.fulfill({ status: 503, contentType: "application/json", body: '{"error":"unavailable"}' })
    : route.continue()));
  await payOn(visit);
  assert.match(await visit.state("unavailable"), /Nothing was taken/);
  await visit.picture("seller-down-after");
  await visit.page.reload(); // which sends nothing by itself, and lets nothing else be signed
  await visit.state("unavailable");
  assert.equal(visit.sent.length, 1);
  assert.equal(await visit.page.getByRole("button", { name: /^Pay/ }).count(), 0);
  await visit.page.unroute(url);
  await visit.button("Try again").click();
  await visit.state("paid");
  assert.equal(visit.wallets[0].signed.length, 1);
  assert.equal(new Set(visit.sent).size, 1);
});

scenario("no answer: the page asks again with the same payment", async ({ world, begin }) => {
  const visit = await begin({ ...phone, wallets: [new TestWallet({ key: world.payer, chain: world.chainId })] });
  const url = world.open.pop();
  await visit.open(url);
  const troubles = [
    async (route) => {
      await route.fetch(); // it arrives, and its answer does not
      await route.abort("connectionreset");
    },
    (route) => route.fulfill({ status: 504, contentType: "text/html", body: "<h1>Gateway timeout</h1>" }),
    (route) => route.fulfill({ status: 503, contentType: "application/json", body: '{"error":"starting"}' }),
    (route) => route.fulfill({ status: 200, contentType: "text/html", body: "<h1>Welcome to our hotel</h1>" }),
  ];
  await visit.page.route(url, (route) => (route.request().method() === "POST" && troubles.shift() || ((r) => r.continue()))(route));
  await payOn(visit);
  assert.match(await visit.state("lost"), /Do not pay again/);
  await visit.picture("connection-lost");
  assert.equal(await visit.page.getByRole("button", { name: /^Pay/ }).count(), 0);
  await visit.state("paid");
  assert.deepEqual((await visit.history()).map(({ state }) => state).slice(-3), ["settling", "lost", "paid"]);
  assert.equal(visit.wallets[0].signed.length, 1);
  assert.equal(visit.sent.length, 5);
  assert.equal(new Set(visit.sent).size, 1);
});

scenario("pending: the page waits, and nobody can pay meanwhile", async ({ world, begin }) => {
  const visit = await begin({ ...phone, wallets: [new TestWallet({ key: world.payer, chain: world.chainId })] });
  await visit.open(world.links.slow);
  await payOn(visit);
  assert.match(await visit.state("pending"), /Do not pay again/);
  await visit.picture("pending-own");
  const other = await begin({ ...phone, wallets: [new TestWallet({ key: world.payer, chain: world.chainId })] });
  await other.open(world.links.slow);
  await other.state("pending");
  assert.equal(await other.page.getByRole("button", { name: /^Pay/ }).count(), 0);
  await visit.state("paid");
  await other.state("paid"); // by itself
  assert.equal(new Set(visit.sent).size, 1);
}, "slow");

scenario("reload while it is being paid", async ({ world, begin }) => {
  const visit = await begin({ ...phone, wallets: [new TestWallet({ key: world.payer, chain: world.chainId })] });
  await visit.open(world.links.reloaded);
  await payOn(visit);
  await visit.state("pending");
  for (let i = 0; i < 3; i++) {
    await visit.page.reload();
    await visit.state("settling", "pending", "paid");
  }
  await visit.state("paid");
  const states = (await visit.history()).map(({ state }) => state);
  assert.ok(!states.slice(1).includes("ready"), `it was payable again: ${states}`);
  assert.equal(visit.wallets[0].signed.length, 1);
  assert.equal(new Set(visit.sent).size, 1);
  await visit.page.reload();
  await visit.page.getByRole("link", { name: "View your receipt" }).click();
  await visit.page.waitForURL(/\/receipt\//);
}, "reloaded");

scenario("reload before the seller has the payment", async ({ world, begin }) => {
  const visit = await begin({ ...phone, wallets: [new TestWallet({ key: world.payer, chain: world.chainId })] });
  const url = world.open.pop();
  await visit.open(url);
  await visit.page.route(url, (route) => (route.request().method() === "POST" ? route.abort("connectionrefused") : route.continue()));
  await payOn(visit);
  await visit.state("lost");
  await visit.page.unroute(url);
  await visit.page.reload();
  await visit.state("paid");
  assert.equal(visit.wallets[0].signed.length, 1);
  assert.equal(new Set(visit.sent).size, 1);
});

// Wallets.

scenario("no wallet, and one that comes late", async ({ world, begin }) => {
  const visit = await begin({ ...phone, wallets: [new TestWallet({ key: world.payer, chain: world.chainId, after: 3000 })] });
  await visit.open(world.open.at(-1));
  await visit.state("looking");
  await visit.picture("looking");
  assert.match(await visit.state("none"), /No wallet in this browser/);
  await visit.picture("no-wallet");
  await visit.state("ready");
  const none = (await visit.history()).find(({ state }) => state === "none");
  assert.ok(none.at >= 1500, `it gave up after ${none.at} ms`);
});

scenario("a wallet that is only window.ethereum", async ({ world, begin }) => {
  const visit = await begin({ ...phone, wallets: [new TestWallet({ key: world.payer, chain: world.chainId, legacy: true })] });
  await visit.open(world.open.pop());
  await visit.button("Pay with your wallet").click();
  await visit.state("paid");
});

// Ways to use it.

scenario("keyboard only", async ({ world, begin }) => {
  const visit = await begin({ ...desktop, wallets: [new TestWallet({ key: world.payer, chain: 1 })] });
  await visit.open(world.open.pop());
  await visit.state("ready");
  const press = async (name) => {
    for (let i = 0; i < 20; i++) {
      const { text, ring } = await visit.page.evaluate(() => ({
        text: document.activeElement === document.body ? "" : document.activeElement.innerText,
        ring: getComputedStyle(document.activeElement).outlineStyle,
      }));
      if (i > 0) assert.notEqual(ring, "none", `"${text}" does not show that it has the focus`);
      if (text.includes(name)) return visit.page.keyboard.press("Enter");
      await visit.page.keyboard.press("Tab");
    }
    assert.fail(`the keyboard does not reach "${name}"`);
  };
  await press("Pay with Fjord Wallet");
  await visit.state("wrong");
  assert.equal(await visit.page.evaluate(() => document.activeElement.innerText), `Switch to ${world.network}`, "the focus is on the next step");
  await visit.picture("keyboard-focus");
  await visit.page.keyboard.press("Enter");
  await visit.state("paid");
  await press("View the receipt");
  await visit.page.waitForURL(/\/receipt\//);
});

scenario("200 % zoom, and 320 px", async ({ world, begin }) => {
  // A window of 1280 px at 200 % is one of 640 CSS px, each of which is two.
  for (const [name, width] of Object.entries({ "zoom-200": 640, "narrow-320": 320 })) {
    const visit = await begin({ viewport: { width, height: 512 }, deviceScaleFactor: 2, wallets: [new TestWallet({ key: world.payer, chain: 1 })] });
    await visit.open(world.links.rich);
    await visit.state("ready");
    await visit.picture(name);
    await visit.open(world.open.at(-1));
    await payOn(visit);
    await visit.state("wrong");
    await visit.picture(`${name}-wrong-network`);
  }
  // Twice the size of the letters alone.
  const visit = await begin({ ...phone, wallets: [new TestWallet({ key: world.payer, chain: 1 })] });
  await visit.open(world.open.at(-1));
  await visit.state("ready");
  await visit.page.evaluate(() => { document.documentElement.style.setProperty("font-size", "200%"); });
  await visit.picture("large-letters");
}, "rich");

scenario("without script", async ({ world, begin }) => {
  for (const [size, settings] of Object.entries({ phone, desktop })) {
    const visit = await begin({ ...settings, javaScriptEnabled: false });
    const url = world.open.at(-1);
    await visit.open(url);
    const said = await visit.page.innerText("main");
    for (const part of ["USDC", world.network, "0x", url, "needs JavaScript"]) assert.ok(said.includes(part), `the page does not say ${part}`);
    assert.ok(await visit.page.locator("svg[role=img]").isVisible());
    assert.equal(await visit.page.locator("button:visible").count(), 0, "there is a button that does nothing");
    await visit.page.screenshot({ path: join(out, `without-script-${size}.png`), fullPage: true });
  }
});

// Everything at once.

scenario("rich: several wallets, offers and fields, then the seller's redirect", async ({ world, begin }) => {
  const wallets = [
    new TestWallet({ key: world.payer, chain: world.chainId }),
    new TestWallet({ key: world.payer, chain: world.chainId, name: "Harbour" }),
    new TestWallet({ key: world.payer, chain: world.chainId, name: "Lantern", image: "https://tracker.example/icon.png" }),
  ];
  const visit = await begin({ ...desktop, wallets });
  await visit.open(world.links.rich);
  assert.match(await visit.state("ready"), /Choose a wallet/);
  await visit.picture("rich-1-desktop");
  assert.equal(await visit.page.locator(".actions img").count(), 2, "an icon that is not in the announcement is not shown");

  const network = visit.page.locator("#network");
  const banner = visit.page.locator("#play");
  const [first, second, third] = await visit.page.getByRole("radio").all();
  await second.check();
  assert.notEqual(await network.innerText(), world.network);
  assert.equal(await banner.isVisible(), false);
  await visit.page.locator("#fields input[required]").first().fill("anything");
  await visit.button("Fjord Wallet").click();
  await visit.state("wrong");
  await visit.button(/^Switch to/).click();
  assert.match(await visit.state("wallet-error"), /does not know .* Nothing was taken/);
  assert.ok(!wallets[0].asked.includes("wallet_addEthereumChain"));
  wallets[0].asked = [];
  await third.check();
  assert.match(await visit.state("programs"), /programs/);
  await visit.picture("rich-2-programs");
  await first.check();
  assert.equal(await network.innerText(), world.network);
  assert.equal(await banner.isVisible(), true);

  await visit.page.locator("#fields input[required]").first().fill("");
  await visit.button("Harbour").click();
  assert.deepEqual(wallets[1].asked, [], "a required field is empty");
  await visit.page.locator("#fields input[required]").first().fill("INV-2026-118 <b>");
  await visit.button("Harbour").click();
  assert.match(await visit.state("paid"), /Next stop/);
  await visit.picture("rich-3-paid");
  assert.equal(wallets[0].asked.length + wallets[2].asked.length, 0);
  const { host } = new URL(world.base);
  await visit.page.getByRole("link", { name: `Continue to ${host}` }).waitFor();
  const receipt = await visit.page.getByRole("link", { name: "View the receipt" }).getAttribute("href");
  await visit.page.waitForURL((url) => !url.pathname.startsWith("/x402/"));
  await visit.open(receipt);
  assert.match(await visit.page.innerText("main"), /INV-2026-118 <b>/);
  await visit.picture("rich-4-receipt");
}, "rich");

scenario("in the dark", async ({ world, begin }) => {
  const wallet = new TestWallet({ key: world.payer, chain: world.chainId });
  const visit = await begin({ ...phone, colorScheme: "dark", wallets: [wallet, new TestWallet({ key: world.payer, name: "Harbour" })] });
  await visit.open(world.links.paid);
  await visit.picture("dark-phone-paid");
  const open = await begin({ ...desktop, colorScheme: "dark", wallets: [wallet] });
  await open.open(world.open.at(-1));
  await open.state("ready");
  await open.picture("dark-desktop-ready");
  wallet.declines.add("eth_requestAccounts");
  await payOn(open);
  await open.state("declined");
  await open.picture("dark-desktop-declined");
  const small = await begin({ ...phone, colorScheme: "dark", wallets: [wallet] });
  await small.open(world.open.at(-1));
  await small.state("ready");
  await small.picture("dark-phone-ready");
}, "paid");

// Strangers' texts.

scenario("hostile texts make no element", async ({ world, begin }) => {
  console.log(`       ${world.hostileTexts} hostile texts in ${world.hostile.length} links; ${world.hostileRefused} more were refused`);
  assert.ok(world.hostileTexts >= 500, `there are ${world.hostileTexts} hostile texts only`);
  const wallet = new TestWallet({ key: world.payer, chain: world.chainId, name: "<img src=x onerror=alert(1)>" });
  const visit = await begin({ ...desktop, wallets: [wallet] });
  const shape = () => visit.page.evaluate(() => [...document.querySelectorAll("*")].map((e) => `${e.tagName} ${[...e.getAttributeNames()]}`).join("\n"));
  let first;
  let receipt;
  for (const [i, url] of world.hostile.entries()) {
    await visit.open(url);
    await visit.state("ready");
    first ??= await shape();
    assert.equal(await shape(), first, `${url} has other elements`);
    if (i % 8 > 0) continue;
    for (const input of await visit.page.locator("#fields input").all()) await input.fill(await input.evaluate((e) => e.labels[0].innerText));
    await visit.button("Pay with").click();
    await visit.state("paid");
    assert.equal(await visit.page.locator(".sheet img, .sheet script[src]").count(), 0);
    await visit.page.getByRole("link", { name: "View the receipt" }).click();
    await visit.page.waitForURL(/\/receipt\//);
    await visit.state("paid");
    receipt ??= await shape();
    assert.equal(await shape(), receipt, `the receipt of ${url} has other elements`);
  }
}, "hostile");

// The run.

for (const old of await readdir(out).catch(() => [])) if (/\.(png|pdf)$/.test(old)) await rm(join(out, old));
await mkdir(out, { recursive: true });
let server;
let world;
if (options.server) {
  ({ service: server, ready: world } = await Service.start("server", join(out, "server.log"), options.server, []));
} else if (options.world) {
  world = JSON.parse(await readFile(options.world, "utf8"));
} else {
  throw new Error("say what to drive: --server PROGRAM or --world FILE");
}
let failed = 0;
const browser = await chromium.launch({
  executablePath: options.chromium,
  args: [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
  ],
}); // with a new, empty profile
try {
  console.log(`Chromium ${browser.version()}`);
  for (const { name, run, needs } of scenarios.filter(({ name }) => name.includes(options.only))) {
    if (!world[needs]?.length && !world.links[needs]) {
      console.log(`-      ${name}: there is no link for it`);
      continue;
    }
    const started = Date.now();
    const visits = [];
    const begin = async (settings) => {
      const visit = await Visit.begin(world, browser, settings);
      visits.push(visit);
      return visit;
    };
    const problems = [];
    await run({ world, begin }).catch((error) => problems.push(error));
    if (problems.length > 0) {
      for (const [i, visit] of visits.entries()) {
        await visit.page.screenshot({ path: join(out, `failed-${name.replace(/\W+/g, "-")}-${i}.png`) }).catch(() => {});
      }
    }
    for (const visit of visits) await visit.close().catch((error) => problems.push(error));
    console.log(`${problems.length === 0 ? "ok    " : "FAILED"} ${name} (${((Date.now() - started) / 1000).toFixed(1)} s)`);
    for (const problem of problems) console.log(`       ${problem.stack.replaceAll("\n", "\n       ")}`);
    failed += problems.length > 0;
  }
} finally {
  await browser.close();
  await server?.stop();
}
if (failed > 0) {
  console.log(`${failed} scenarios failed`);
  process.exitCode = 1;
} else {
  console.log(`every scenario passed; the pictures are in e2e/out/browser`);
}
