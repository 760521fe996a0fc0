// Pays for one request with @x402/axios, in protocol v2.
import axios, { AxiosHeaders } from "axios";
import { decodePaymentResponseHeader, wrapAxiosWithPaymentFromConfig } from "@x402/axios";
import { ExactEvmScheme } from "@x402/evm/exact/client";
import { privateKeyToAccount } from "viem/accounts";
import { keyFromEnv, report, requestFromEnv } from "../report.mjs";

const account = privateKeyToAccount(keyFromEnv());
const { url, method, body, headers } = requestFromEnv();

const api = wrapAxiosWithPaymentFromConfig(axios.create(), {
  schemes: [{ network: "eip155:*", client: new ExactEvmScheme(account) }],
});

// A refusal of the payment is an outcome to report, not a failure of this program.
const response = await api.request({ url, method, headers, data: body }).catch((error) => {
  if (!error.response) throw error;
  return error.response;
});

const sent = AxiosHeaders.from(response.config.headers).get("PAYMENT-SIGNATURE");
const receipt = response.headers["payment-response"];
report({
  status: response.status,
  headers: { ...response.headers },
  body: response.data,
  receipt: receipt === undefined ? null : decodePaymentResponseHeader(receipt),
  payment: sent ? { header: "PAYMENT-SIGNATURE", value: sent } : null,
});
