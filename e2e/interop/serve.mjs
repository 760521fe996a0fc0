// What the official servers of the matrix have in common: a priced route that counts its runs.

/**
 * What a seller is told: FACILITATOR_URL, PAY_TO, PRICE (such as "$0.001") and, where it sells by upto, CHARGE: what it
 * charges, in atomic units. PLAIN_TOKEN is a token with the decimals of the usual one that knows nothing but ERC-20.
 */
export function sellerFromEnv() {
  const { FACILITATOR_URL: facilitator, PAY_TO: payTo, PRICE: price, CHARGE: charge, PLAIN_TOKEN: plainToken } = process.env;
  if (!facilitator || !payTo || !price) throw new Error("set FACILITATOR_URL, PAY_TO and PRICE");
  return { facilitator, payTo, price, charge, plainToken };
}

/**
 * Adds the priced routes GET and POST /report, and GET /grants, which says how often they ran. Returns their handler,
 * for routes that are paid in other ways.
 */
export function addRoutes(app, express) {
  let grants = 0;
  const grant = (request, response) => {
    grants += 1;
    response.json({ report: "sunny", echo: request.body ?? null });
  };
  app.get("/report", grant);
  app.post("/report", express.json(), grant);
  app.get("/grants", (_, response) => response.json({ grants }));
  return grant;
}

/** Listens on a port of the kernel's choice, says where in one line of JSON, and stays until SIGTERM. */
export function serve(app) {
  const server = app.listen(0, "127.0.0.1", () => {
    const url = `http://127.0.0.1:${server.address().port}`;
    process.stdout.write(JSON.stringify({ url, grants_url: `${url}/grants` }) + "\n");
  });
  process.on("SIGTERM", () => process.exit(0));
}
