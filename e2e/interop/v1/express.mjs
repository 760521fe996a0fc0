// A seller on the official v1 middleware, whose facilitator is ours.
import express from "express";
import { paymentMiddleware } from "x402-express";
import { addRoutes, sellerFromEnv, serve } from "../serve.mjs";

const { facilitator, payTo, price } = sellerFromEnv();
const offer = { price, network: "base-sepolia", config: { description: "A report" } };

const app = express();
app.use(paymentMiddleware(payTo, { "GET /report": offer, "POST /report": offer }, { url: facilitator }));
addRoutes(app, express);
serve(app);
