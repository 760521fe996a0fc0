// A wallet for tests: it announces itself in the page as EIP-6963 asks, and answers from here, where its key is. Nothing
// of a page ever sees the key.
import { randomUUID } from "node:crypto";
import { privateKeyToAccount } from "viem/accounts";

const icon = "data:image/svg+xml," + encodeURIComponent(
  '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="#e8822a"/><path d="M8 12h16v10H8z" fill="#fff"/><circle cx="20.5" cy="17" r="1.8" fill="#e8822a"/></svg>');

const rejected = { code: 4001, message: "User rejected the request." };

export class TestWallet {
  /**
   * @param key     private key, hexadecimal
   * @param chain   the chain it is on
   * @param knows   the chains that it can switch to
   * @param after   ms after which it announces itself; 0 is as a good wallet does, at once and when asked
   * @param legacy  whether it is window.ethereum and announces nothing
   */
  constructor({ key, name = "Fjord Wallet", chain = 1, knows = [1, 84532], after = 0, legacy = false, image = icon }) {
    Object.assign(this, { account: privateKeyToAccount(key), name, chain, knows: [...knows], after, legacy, image });
    this.uuid = randomUUID();
    this.asked = []; // methods, in order
    this.signed = []; // messages
    this.declines = new Set(); // methods that the user declines
    this.gates = new Map(); // methods that wait, and for what
  }

  /** Makes a method wait until the returned function is called. */
  hold(method) {
    let open;
    this.gates.set(method, new Promise((resolve) => (open = resolve)));
    return () => {
      this.gates.delete(method);
      open();
    };
  }

  async answer(method, params) {
    this.asked.push(method);
    await this.gates.get(method);
    if (this.declines.has(method)) throw rejected;
    switch (method) {
      case "eth_requestAccounts":
        return [this.account.address];
      case "eth_chainId":
        return `0x${this.chain.toString(16)}`;
      case "wallet_switchEthereumChain": {
        const chain = Number(params[0].chainId);
        if (!this.knows.includes(chain)) throw { code: 4902, message: `Unrecognized chain ID "${params[0].chainId}".` };
        this.chain = chain;
        return null;
      }
      case "wallet_addEthereumChain": {
        const { chainId, chainName, rpcUrls, nativeCurrency } = params[0];
        if (!chainName || !/^(https:|http:\/\/(127\.0\.0\.1|localhost)[:/])/.test(rpcUrls[0]) || nativeCurrency.decimals !== 18) throw { code: -32602, message: "Invalid parameters." };
        this.knows.push(Number(chainId)); // like some wallets, it adds a chain and stays where it is
        return null;
      }
      case "eth_signTypedData_v4": {
        const { domain, types, primaryType, message } = JSON.parse(params[1]);
        if (params[0] !== this.account.address) throw { code: 4100, message: "Not this wallet's account." };
        if (domain.chainId !== this.chain) throw { code: -32603, message: "Provided chainId does not match the active one." };
        const { EIP712Domain, ...rest } = types;
        if (!EIP712Domain) throw { code: -32602, message: "types lacks EIP712Domain." };
        this.signed.push(message);
        return this.account.signTypedData({ domain, types: rest, primaryType, message });
      }
      default:
        throw { code: 4200, message: `${method} is not supported.` };
    }
  }
}

/** Puts wallets into every page of a browser context. */
export async function install(context, wallets) {
  await context.exposeBinding("__testWallet", async (_, uuid, method, params) => {
    try {
      return { result: await wallets.find((w) => w.uuid === uuid).answer(method, params) };
    } catch (error) {
      return { error: { code: error.code ?? -32603, message: error.message } };
    }
  });
  await context.addInitScript(announce, wallets.map(({ uuid, name, image, after, legacy }) => ({ uuid, name, image, after, legacy })));
}

// Runs in the page, before the page's own script.
function announce(wallets) {
  for (const { uuid, name, image, after, legacy } of wallets) {
    const provider = {
      async request({ method, params }) {
        const { result, error } = await window.__testWallet(uuid, method, params ?? []);
        if (error) throw Object.assign(new Error(error.message), { code: error.code });
        return result;
      },
      on() {},
      removeListener() {},
    };
    if (legacy) {
      window.ethereum = provider;
      continue;
    }
    const detail = Object.freeze({ info: { uuid, name, icon: image, rdns: "example.fjord" }, provider });
    const tell = () => window.dispatchEvent(new CustomEvent("eip6963:announceProvider", { detail }));
    if (after) {
      setTimeout(tell, after);
    } else {
      window.addEventListener("eip6963:requestProvider", tell);
      tell();
    }
  }
}
