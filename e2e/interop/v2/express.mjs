// A seller on the official v2 middleware, whose facilitator is ours.
import express from "express";
import { HTTPFacilitatorClient } from "@x402/core/server";
import { ExactEvmScheme } from "@x402/evm/exact/server";
import { UptoEvmScheme } from "@x402/evm/upto/server";
import { paymentMiddleware, setSettlementOverrides, x402ResourceServer } from "@x402/express";
import { declareEip2612GasSponsoringExtension, declareErc20ApprovalGasSponsoringExtension } from "@x402/extensions";
import { addRoutes, sellerFromEnv, serve } from "../serve.mjs";

const { facilitator, payTo, price, charge, plainToken } = sellerFromEnv();
const network = "eip155:84532";
const exact = new ExactEvmScheme();
const resourceServer = new x402ResourceServer(new HTTPFacilitatorClient({ url: facilitator }))
  .register(network, exact)
  .register(network, new UptoEvmScheme());

const money = await exact.parsePrice(price, network);
const byPermit2 = { ...money, extra: { ...money.extra, assetTransferMethod: "permit2" } };
const extensions = declareEip2612GasSponsoringExtension();
const report = { accepts: { scheme: "exact", network, payTo, price }, description: "A report" };
const tides = { accepts: { scheme: "exact", network, payTo, price: byPermit2 }, description: "Tides", extensions };
const plain = { asset: plainToken, amount: money.amount, extra: { assetTransferMethod: "permit2" } };
const ferry = {
  accepts: { scheme: "exact", network, payTo, price: plain },
  description: "A ferry",
  extensions: declareErc20ApprovalGasSponsoringExtension(),
};
const quota = { accepts: { scheme: "upto", network, payTo, price }, description: "A quota", extensions };

const app = express();
app.use(paymentMiddleware(
  { "GET /report": report, "POST /report": report, "GET /tides": tides, "GET /ferry": ferry, "GET /quota": quota }, resourceServer));
const grant = addRoutes(app, express);
app.get("/tides", grant);
app.get("/ferry", grant);
app.get("/quota", (request, response) => {
  setSettlementOverrides(response, { amount: charge });
  grant(request, response);
});
serve(app);
