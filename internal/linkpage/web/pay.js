// The part of a payment link's page that needs a script: it finds the visitor's wallets, has one of them sign, and sends
// what it signed. Everything that a payment consists of comes from the server, but for who pays, when, and a random nonce.
//
// One rule is above all others: a payment that was signed and sent is kept, and until the server has said what became of
// it the same one is sent again and none other is signed. So neither a reload nor a broken connection can pay twice.
//
// Text reaches the page by textContent only, and images only as the data: URIs that wallets announce.

const $ = (id) => document.getElementById(id);
const sheet = $("sheet");
const link = JSON.parse($("link")?.textContent || "null");

// What every page has.

function showLocalTimes() {
  for (const time of document.querySelectorAll("time")) {
    const moment = new Date(time.dateTime);
    if (!Number.isNaN(moment.getTime())) time.textContent = localTime(moment);
  }
}

function localTime(moment) {
  return new Intl.DateTimeFormat("en-GB", { dateStyle: "long", timeStyle: "short" }).format(moment);
}

function enableCopying() {
  if (!navigator.clipboard) return; // pages that did not come by https have none
  for (const button of document.querySelectorAll("[data-copy]")) {
    const label = button.firstChild; // a text; what follows it is for screen readers
    button.hidden = false;
    button.setAttribute("aria-live", "polite");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(document.querySelector(button.dataset.copy).textContent.trim());
        label.textContent = "Copied";
      } catch {
        label.textContent = "Not copied";
      }
      setTimeout(() => (label.textContent = "Copy"), 2000);
    });
  }
}

function enablePrinting() {
  const print = $("print");
  if (!print) return;
  print.hidden = false;
  print.addEventListener("click", () => window.print());
}

// The page of a link.

function start() {
  const kept = keptPayment();
  if (kept?.header && !kept.refused) {
    deliver(kept, true); // before anything else, whatever the status is
  } else if (link.status === "ACTIVE" && kept?.refused && now() < kept.until + 60) {
    sendAgain(kept);
  } else if (link.status === "ACTIVE") {
    checkout();
  } else if (link.status === "PENDING") {
    watch("PENDING", () => setTimeout(() => location.reload(), 1000));
  } else if (link.status === "PAID" && webURL(kept?.receipt)) {
    $("actions").append(anchor("View your receipt", webURL(kept.receipt).href));
  }
}

/** Says where things stand, and what the visitor can do now. */
function show(state, title, text = "", ...actions) {
  const hadFocus = $("actions").contains(document.activeElement) || document.activeElement === $("status");
  sheet.dataset.state = state;
  if ($("status-title").textContent !== title) $("status-title").textContent = title;
  if ($("status-text").textContent !== text) $("status-text").textContent = text;
  $("actions").replaceChildren(...actions);
  if ($("fields")) $("fields").hidden = !editable.has(state);
  if ($("offers")) $("offers").hidden = !editable.has(state);
  if (hadFocus) ($("actions").querySelector("button, a") ?? $("status")).focus();
}

// The states in which the visitor may still change what will be paid, and with what words.
const editable = new Set(["looking", "none", "ready", "declined", "poor", "refused", "wallet-error", "unavailable", "programs", "wrong"]);

function button(text, act, { plain = false, icon = "" } = {}) {
  const b = document.createElement("button");
  b.type = "button";
  b.className = plain ? "button plain" : "button";
  if (icon.startsWith("data:image/")) {
    const image = document.createElement("img");
    image.src = icon;
    image.alt = "";
    b.append(image);
  }
  b.append(text);
  b.addEventListener("click", act);
  return b;
}

function anchor(text, url, { plain = false } = {}) {
  const a = document.createElement("a");
  a.className = plain ? "button plain" : "button";
  a.href = url;
  a.rel = "noopener noreferrer";
  a.append(text);
  return a;
}

/** The URL that a text is, if it is one that a visitor may be sent to; else null. */
function webURL(text) {
  if (typeof text !== "string" || text === "") return null;
  try {
    const url = new URL(text, location.href);
    return url.protocol === "https:" || url.protocol === "http:" ? url : null;
  } catch {
    return null;
  }
}

// Wallets: EIP-6963, and window.ethereum where none announces itself.

const wallets = new Map(); // by uuid: { name, icon, provider }
const patience = 1500; // ms before the page says that there is no wallet; some announce themselves late
let busy = false; // a wallet or the server has been asked, and has not answered

function checkout() {
  for (const input of document.querySelectorAll("#offers input")) input.addEventListener("change", showOffer);
  $("fields")?.addEventListener("submit", (event) => {
    event.preventDefault();
    if (wallets.size === 1) pay([...wallets.values()][0]);
  });
  showOffer();
  expireInTime();

  window.addEventListener("eip6963:announceProvider", ({ detail }) => {
    const { info, provider } = detail ?? {};
    if (!info?.uuid || typeof provider?.request !== "function" || wallets.has(info.uuid)) return;
    wallets.delete("injected"); // it is most likely the one that has just given its name
    wallets.set(info.uuid, { name: String(info.name || "your wallet"), icon: String(info.icon || ""), provider });
    offerWallets();
  });
  window.addEventListener("ethereum#initialized", adoptInjected);
  window.dispatchEvent(new Event("eip6963:requestProvider"));
  setTimeout(adoptInjected, patience / 3);
  setTimeout(() => {
    adoptInjected();
    if (wallets.size === 0 && sheet.dataset.state === "looking") noWallet();
  }, patience);
}

function adoptInjected() {
  if (wallets.size > 0 || typeof window.ethereum?.request !== "function") return;
  wallets.set("injected", { name: "your wallet", icon: "", provider: window.ethereum });
  offerWallets();
}

/** Shows the wallets again, unless something else is going on. */
function offerWallets() {
  const state = sheet.dataset.state;
  if (busy || state === "wrong" || state === "programs") return;
  if (["looking", "none", "ready"].includes(state)) ready();
  else $("actions").replaceChildren(...walletButtons());
}

function ready() {
  busy = false;
  if (!chosen().typed) {
    show("programs", "This is for programs", `A wallet in a browser cannot sign ${chosen().asset} on ${chosen().network} here. Programs pay this address by x402.`);
  } else if (wallets.size === 0) {
    show("looking", "Looking for your wallet", "This takes a moment.");
  } else {
    show("ready", wallets.size > 1 ? "Choose a wallet" : "Pay with your wallet", "Your wallet shows you what you sign. Nothing is taken before you do.", ...walletButtons());
  }
}

function walletButtons() {
  const several = wallets.size > 1;
  return [...wallets.values()].map((w) =>
    button(several ? w.name : `Pay with ${w.name}`, () => pay(w), { plain: several, icon: w.icon }));
}

function noWallet() {
  show("none", "No wallet in this browser", "Scan the code with your phone, or open this page in your wallet's own browser. A wallet that you install now appears here by itself.");
}

/** Tells the visitor what went wrong before anything was sent, and lets them try again. */
function stop(state, title, text) {
  busy = false;
  show(state, title, text, ...walletButtons());
}

// The offer that is being paid.

function chosen() {
  const input = document.querySelector("#offers input:checked");
  return link.offers[input ? Number(input.value) : Math.max(0, link.offers.findIndex((o) => o.typed))];
}

function showOffer() {
  const offer = chosen();
  const [head, middle, tail] = offer.payTo;
  const bold = (text) => {
    const b = document.createElement("b");
    b.textContent = text;
    return b;
  };
  document.querySelector("#amount .figure").textContent = offer.figure;
  document.querySelector("#amount .asset").textContent = offer.asset;
  $("amount").classList.toggle("long", offer.figure.length > 9);
  $("network").textContent = offer.network;
  $("play").hidden = !offer.test;
  document.querySelector("#recipient .address").replaceChildren(bold(head), middle, bold(tail));
  ready();
  if (wallets.size === 0 && performance.now() > patience && offer.typed) noWallet();
}

/** The seller's name, so that its letters cannot turn the sentence around it. */
const merchant = `\u2068${link?.merchant}\u2069`;

/** The server's time in unix seconds; the visitor's clock may be wrong. */
const ahead = link ? link.now - Date.now() / 1000 : 0;
const now = () => Math.floor(Date.now() / 1000 + ahead);

function expireInTime() {
  if (!link.expires) return;
  const left = (link.expires - now()) * 1000;
  if (left > 2 ** 31 - 1) return; // more than a timer can count; nobody looks at a page for so long
  setTimeout(() => busy || expired(), Math.max(0, left));
}

// Paying.

async function pay(wallet) {
  if (busy) return;
  const fields = $("fields");
  if (fields && !fields.hidden && !fields.reportValidity()) return;
  busy = true;
  const offer = chosen();
  let step = "connect";
  let payment;
  try {
    show("waiting", `Waiting for ${wallet.name}`, "Let the wallet connect to this page.");
    const [from] = await wallet.provider.request({ method: "eth_requestAccounts" });
    if (!from) throw Object.assign(new Error("The wallet has named no account."), { code: 4100 });
    if (!(await onChain(wallet, offer))) return wrongNetwork(wallet, offer);

    const status = await askStatus();
    if (status !== "ACTIVE") return notPayable(status);

    step = "sign";
    show("waiting", "Waiting for your signature", `Compare amount and recipient in ${wallet.name}, then sign. Nothing is taken before you do.`);
    payment = await sign(wallet, offer, from);
  } catch (error) {
    return walletFailed(wallet, step, error);
  }
  await deliver(payment);
}

async function onChain(wallet, offer) {
  return BigInt(await wallet.provider.request({ method: "eth_chainId" })) === BigInt(offer.chainId);
}

function wrongNetwork(wallet, offer) {
  busy = false;
  show("wrong", "Your wallet is on another network", `This payment is on ${offer.network}. Switch ${wallet.name} over, and the payment goes on.`,
    button(`Switch to ${offer.network}`, () => switchAndPay(wallet, offer)),
    button("Go back", ready, { plain: true }));
}

async function switchAndPay(wallet, offer) {
  if (busy) return;
  busy = true;
  show("waiting", `Waiting for ${wallet.name}`, `Let the wallet switch to ${offer.network}.`);
  try {
    if (!(await onChain(wallet, offer))) await switchChain(wallet, offer);
    if (!(await onChain(wallet, offer))) return wrongNetwork(wallet, offer); // it said yes, and stayed where it was
    busy = false;
    pay(wallet);
  } catch (error) {
    if (unknownChain(error)) {
      stop("wallet-error", `${wallet.name} does not know ${offer.network}`, "Add this network in your wallet's settings, then try again. Nothing was taken.");
    } else {
      walletFailed(wallet, "switch", error);
    }
  }
}

async function switchChain(wallet, offer) {
  const request = { method: "wallet_switchEthereumChain", params: [{ chainId: offer.chainId }] };
  try {
    await wallet.provider.request(request);
  } catch (error) {
    if (!unknownChain(error) || !offer.chain) throw error;
    await wallet.provider.request({ method: "wallet_addEthereumChain", params: [offer.chain] });
    if (!(await onChain(wallet, offer))) await wallet.provider.request(request);
  }
}

function unknownChain(error) {
  return error?.code === 4902 || error?.data?.originalError?.code === 4902;
}

/** Has the wallet sign the offer. Resolves to the payment as it is sent. */
async function sign(wallet, offer, from) {
  const nonce = "0x" + Array.from(crypto.getRandomValues(new Uint8Array(32)), (b) => b.toString(16).padStart(2, "0")).join("");
  const until = Math.min(now() + offer.timeout, link.expires || Infinity);
  const authorization = { from, ...offer.typed.message, validAfter: "0", validBefore: String(until), nonce };
  const typed = { ...offer.typed, message: authorization };
  const signature = await wallet.provider.request({ method: "eth_signTypedData_v4", params: [from, JSON.stringify(typed)] });
  const payment = {
    x402Version: 2,
    resource: link.resource,
    accepted: offer.accepted,
    payload: { authorization, signature: canonical(signature) },
  };
  const fields = $("fields") ? Object.fromEntries(new FormData($("fields"))) : {};
  return { header: base64(JSON.stringify(payment)), body: JSON.stringify({ fields }), offer: link.offers.indexOf(offer), from, until };
}

/** Some wallets end a signature with 0 or 1, where everybody else writes 27 or 28. */
function canonical(signature) {
  const end = signature.length === 132 ? { "00": "1b", "01": "1c" }[signature.slice(-2)] : undefined;
  return end ? signature.slice(0, -2) + end : signature;
}

function base64(text) {
  return btoa(Array.from(new TextEncoder().encode(text), (b) => String.fromCharCode(b)).join(""));
}

// Sending a payment until its fate is known.

const drawer = `tollgate:${link?.path}`; // in the session's storage, where a reload finds it

/** What an earlier visit has kept: a payment whose fate is open, or the receipt of one; or null. */
function keptPayment() {
  try {
    return JSON.parse(sessionStorage.getItem(drawer));
  } catch {
    return null;
  }
}

function keep(what) {
  try {
    sessionStorage.setItem(drawer, JSON.stringify(what));
  } catch {
    // Without storage a reload relies on the server alone, which says PENDING once it has the payment.
  }
}

function forget() {
  try {
    sessionStorage.removeItem(drawer);
  } catch {
    // There was none.
  }
}

/**
 * Sends a payment until the server has said what became of it. inDoubt says that it may have arrived before; then an
 * answer that the server cannot take payments now says nothing about it.
 */
async function deliver(payment, inDoubt = false) {
  busy = true;
  keep({ ...payment, refused: false });
  show("settling", "Your payment is being settled", "This takes a few seconds. Please leave this page open, and do not pay again.");
  for (let attempt = 0; ; attempt++) {
    const answer = await send(payment);
    if (answer.kind === "final") {
      forget();
      return conclude(payment, answer);
    }
    if (answer.kind === "down" && !inDoubt) {
      keep({ ...payment, refused: true });
      return sendAgain(payment);
    }
    inDoubt = true;
    if (answer.kind === "pending") {
      const receipt = webURL(answer.body.receiptUrl);
      show("pending", "Your payment is on its way", "It is signed and sent, and not confirmed yet. Do not pay again: this page says when it has arrived.",
        ...(receipt ? [anchor("Open the receipt", receipt.href, { plain: true })] : []));
    } else {
      show("lost", "The seller has not answered", "Your signed payment may have arrived. Do not pay again: this page keeps asking what became of it.");
    }
    await change(Math.min(2000 * 1.5 ** attempt, 15000));
  }
}

/**
 * Sends a payment once. The answer is final, or the payment is pending, or the seller is down and nothing was taken, or
 * there is none: then money may move because of it, or not. What is not the server's own JSON is none, for it may be of
 * something in between, such as a gateway that waited no longer.
 */
async function send(payment) {
  try {
    const response = await fetch(link.path, {
      method: "POST",
      headers: { "PAYMENT-SIGNATURE": payment.header, Accept: "application/json", "Content-Type": "application/json" },
      body: payment.body,
      cache: "no-store",
      signal: AbortSignal.timeout?.(60000),
    });
    const body = (await response.json().catch(() => null)) ?? {};
    const { status } = response;
    let kind = "final";
    if (status >= 500) kind = body.status === "PENDING" ? "pending" : "down";
    if ((!body.error && !body.receipt) || [408, 425, 429].includes(status)) kind = "none";
    return { kind, status, body };
  } catch {
    return { kind: "none" };
  }
}

function conclude(payment, { status, body }) {
  const offer = link.offers[payment.offer] ?? link.offers[0];
  if (body.receipt && (status === 200 || status === 410)) return paid(payment, offer, body);
  if (status === 409 && body.error === "being_paid") return notPayable("PENDING");
  if (status === 409 && body.error === "already_paid") return notPayable("PAID");
  if (status === 409) return astray(body);
  if (status === 404) return notPayable("DISABLED");
  if (["PENDING", "PAID", "EXPIRED", "DISABLED"].includes(body.status)) return notPayable(body.status);
  if (link.status !== "ACTIVE") return location.reload();
  const reason = String(body.error ?? "");
  if (wallets.size === 0) checkout(); // this was the payment of an earlier visit
  if (/insufficient_(balance|funds)/.test(reason)) {
    return stop("poor", `Not enough ${offer.asset}`, `The account ${shortened(payment.from)} does not hold ${offer.amount} on ${offer.network}. Nothing was taken.`);
  }
  if (/nonce_already_used|duplicate/.test(reason)) {
    return stop("refused", "This signature was used before", "Look at what your wallet has spent before you pay again.");
  }
  if (/valid_before|expired|deadline/.test(reason)) {
    return stop("refused", "Your signature ran out of time", "It arrived too late to be used, and nothing was taken. You can sign again.");
  }
  stop("refused", "The payment was refused", `Nothing was taken.${reason ? ` The seller's answer: ${reason.slice(0, 200)}` : ""}`);
}

/** Offers to send a payment again that the seller could not take. It is still good, so nothing else is signed meanwhile. */
function sendAgain(payment) {
  busy = true;
  show("unavailable", "The seller cannot take payments right now", "Nothing was taken. Please try again in a moment; you need not sign again.",
    button("Try again", () => deliver(payment)));
}

function shortened(address) {
  return `${address.slice(0, 8)}…${address.slice(-6)}`;
}

// The ends.

function paid(payment, offer, { receipt, success }) {
  busy = true; // nothing can be paid from this page any more
  const to = webURL(success?.redirect);
  const receiptPage = webURL(receipt.url);
  const message = success?.message ? String(success.message) : "";
  const actions = [];
  if (receiptPage) {
    keep({ receipt: receiptPage.href });
    actions.push(anchor("View the receipt", receiptPage.href));
  }
  show("paid", "Paid", message || `${merchant} has your ${offer.amount}.`, ...actions);
  document.title = `Paid: ${document.title}`;
  const seconds = Number(receipt.paidAt);
  const at = new Date(Number.isNaN(seconds) ? receipt.paidAt : seconds * 1000);
  $("details").replaceChildren(facts([
    ["Amount", offer.amount],
    ["Paid", Number.isNaN(at.getTime()) ? localTime(new Date(now() * 1000)) : localTime(at)],
    ["From", shortened(payment.from), "code"],
    ["Transaction", receipt.transaction, "code", receipt.explorer],
  ]));
  $("status").focus({ preventScroll: true });
  if (to) leave(to, receiptPage);
}

function facts(rows) {
  const list = document.createElement("dl");
  list.className = "facts";
  for (const [name, value, kind, url] of rows) {
    if (!value) continue;
    const term = document.createElement("dt");
    const detail = document.createElement("dd");
    const target = webURL(url);
    const text = document.createElement(target ? "a" : kind ?? "span");
    if (kind) text.className = "hash";
    if (target) Object.assign(text, { href: target.href, target: "_blank", rel: "noopener noreferrer" });
    text.textContent = value;
    term.textContent = name;
    detail.append(text);
    const row = document.createElement("div");
    row.append(term, detail);
    list.append(row);
  }
  return list;
}

/** Takes the payer to where the seller wants them, after three seconds, unless they would rather stay. */
function leave(to, receiptPage) {
  const timer = setTimeout(() => location.assign(to.href), 3000);
  const staying = button("Stay on this page", () => {
    clearTimeout(timer);
    $("actions").replaceChildren(...(receiptPage ? [anchor("View the receipt", receiptPage.href)] : []), anchor(`Continue to ${to.host}`, to.href, { plain: true }));
    $("status").focus();
  }, { plain: true });
  $("status-text").textContent += ` Next stop: ${to.host}, in three seconds.`;
  $("actions").replaceChildren(anchor(`Continue to ${to.host}`, to.href), staying, ...(receiptPage ? [anchor("View the receipt", receiptPage.href, { plain: true })] : []));
}

function expired() {
  busy = true;
  show("expired", "This link has expired", `It can no longer be paid, and nothing was taken. Ask ${merchant} for a new one.`);
}

/** Says that the payment has not paid the link, in the server's words: money may have moved, which only the server knows. */
function astray({ error, refundDue, receiptUrl }) {
  busy = true;
  const receipt = webURL(receiptUrl);
  const actions = receipt ? [anchor("Open the receipt", receipt.href)] : [];
  if (receipt) keep({ receipt: receipt.href });
  if (refundDue) {
    return show("refund-due", "Your money came too late", `It has arrived when it could not pay this link any more. ${merchant} owes you a refund. Do not pay again for it.`, ...actions);
  }
  show("taken", "This payment has not paid this link", `The seller's answer: ${String(error).slice(0, 200)}`, ...actions);
}

/** Says why a link cannot be paid. Nothing of this visitor's was taken. */
function notPayable(status) {
  busy = true;
  switch (status) {
    case "PAID":
      return show("taken", "This link has already been paid", "There is nothing left to pay, and nothing was taken from you just now.");
    case "PENDING":
      show("pending", "Somebody is paying this link", "Nothing was taken from you. If their payment fails, you can pay: this page says so.");
      return watch("PENDING", () => setTimeout(() => location.reload(), 1000));
    case "EXPIRED":
      return expired();
    case "DISABLED":
      return show("disabled", "This link was withdrawn", `${merchant} has withdrawn it. It can no longer be paid, and nothing was taken.`);
    default:
      return stop("unavailable", "The seller cannot take payments right now", "Nothing was taken, and you have signed nothing. Please try again in a moment.");
  }
}

/** Says what a wallet answered instead of what it was asked for. Nothing was signed. */
function walletFailed(wallet, step, error) {
  const said = String(error?.message ?? error ?? "").slice(0, 200);
  if (error?.code === 4001 || error?.code === "ACTION_REJECTED") {
    const what = { connect: "did not connect the wallet", switch: "did not switch the network", sign: "declined to sign" }[step];
    return stop("declined", `You ${what}`, "Nothing was signed and nothing was taken. You can try again whenever you like.");
  }
  if (error?.code === -32002) {
    return stop("wallet-error", `${wallet.name} is already asking you something`, "Open the wallet, answer it there, and try again. Nothing was taken.");
  }
  stop("wallet-error", `${wallet.name} could not do that`, `Nothing was signed and nothing was taken.${said ? ` It says: ${said}` : ""}`);
}

// The status of the link, from events or by asking.

async function askStatus() {
  try {
    const response = await fetch(link.path, { headers: { Accept: "application/json" }, cache: "no-store", signal: AbortSignal.timeout?.(15000) });
    return (await response.json()).status ?? (response.status === 404 ? "DISABLED" : "");
  } catch {
    return ""; // not known
  }
}

/** Resolves when the link's status changes, after a second at the earliest and when the time is over at the latest. */
function change(timeout) {
  const changed = new Promise((resolve) => {
    const close = watch("", resolve);
    setTimeout(() => (close(), resolve()), timeout);
  });
  return Promise.all([changed, new Promise((resolve) => setTimeout(resolve, 1000))]);
}

/**
 * Calls back once when the link's status is no longer the given one, or, without one, no longer what it is now. Returns
 * what ends the watch.
 */
function watch(status, changed) {
  let over = false;
  let timer = 0;
  const events = new EventSource(link.events);
  const close = () => {
    over = true;
    clearTimeout(timer);
    events.close();
  };
  const heard = (current) => {
    if (over || !current || current === status) return;
    if (!status && current !== "PAID") {
      status = current;
      return;
    }
    close();
    changed();
  };
  const poll = async () => {
    heard(await askStatus());
    if (!over) timer = setTimeout(poll, 4000);
  };
  events.addEventListener("status", (event) => {
    try {
      heard(JSON.parse(event.data).status);
    } catch {
      // A line that cannot be read says nothing.
    }
  });
  events.addEventListener("error", () => {
    if (events.readyState !== EventSource.CLOSED || over || timer) return;
    timer = setTimeout(poll, 2000); // there are no events here; ask instead
  });
  return close;
}

// Begin

showLocalTimes();
enableCopying();
enablePrinting();
if (link) start();
