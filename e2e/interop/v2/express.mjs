// A seller on the official v2 middleware, whose facilitator is ours.
import express from "express";
import { HTTPFacilitatorClient } from "@x402/core/server";
import { ExactEvmScheme } from "@x402/evm/exact/server";
import { paymentMiddleware, x402ResourceServer } from "@x402/express";
import { addRoutes, sellerFromEnv, serve } from "../serve.mjs";

const { facilitator, payTo, price } = sellerFromEnv();
const network = "eip155:84532";
const offer = { accepts: { scheme: "exact", network, payTo, price }, description: "A report" };
const resourceServer = new x402ResourceServer(new HTTPFacilitatorClient({ url: facilitator }))
  .register(network, new ExactEvmScheme());

const app = express();
app.use(paymentMiddleware({ "GET /report": offer, "POST /report": offer }, resourceServer));
addRoutes(app, express);
serve(app);
