// A wallet with play money, for the pages of payment links in the sandbox and nowhere else. It announces itself as
// EIP-6963 asks, shows what is to be signed, and has the sandbox sign it. The key is no secret: anybody can derive it.
(() => {
  const name = "Play money (sandbox)";
  const icon = "data:image/svg+xml," + encodeURIComponent(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="#8a5cd1"/>' +
    '<circle cx="16" cy="16" r="9" fill="#fff"/><path d="M13 11v10l8-5z" fill="#8a5cd1"/></svg>');

  function failure({ code, message }) {
    return Object.assign(new Error(message), { code });
  }

  /** What the visitor is asked before something is signed: all of it, in lines. */
  function question(typed) {
    const { domain, primaryType, message } = typeof typed === "string" ? JSON.parse(typed) : typed;
    const lines = (object) => Object.entries(object).map(([key, value]) => `${key}: ${value}`);
    return [`${name}: sign this?`, "", primaryType, ...lines(message), "", ...lines(domain)].join("\n");
  }

  async function request({ method, params = [] }) {
    if (method === "eth_signTypedData_v4" && !confirm(question(params[1]))) {
      throw failure({ code: 4001, message: "You declined to sign." });
    }
    const response = await fetch("/_sandbox/wallet", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ method, params }),
      cache: "no-store",
    });
    const { result, error } = await response.json();
    if (error) throw failure(error);
    return result;
  }

  const info = Object.freeze({ uuid: crypto.randomUUID?.() ?? "a4dd6a3e-5a3f-4b8e-9a54-7a3f5e1c4021", name, icon, rdns: "localhost.tollgate.sandbox" });
  const detail = Object.freeze({ info, provider: Object.freeze({ request, on() {}, removeListener() {} }) });
  const announce = () => window.dispatchEvent(new CustomEvent("eip6963:announceProvider", { detail }));
  window.addEventListener("eip6963:requestProvider", announce);
  announce();
})();
