// The matrix as people read it: on a terminal, and in the developers' docs.

const titles = {
  client: "client", package: "package", version: "version", scheme: "scheme", method: "method", seller: "seller",
  what: "does", status: "status", receipt: "receipt", payer: "payer", payTo: "payTo", grants: "grants", result: "result",
};
const begin = "<!-- interop:begin -->";
const end = "<!-- interop:end -->";

/** The rows in columns of equal width, receipts shortened. */
export function plain(rows) {
  const keys = Object.keys(titles);
  const lines = [titles, ...rows.map((row) => ({ ...row, receipt: shorten(row.receipt) }))];
  const width = (key) => Math.max(...lines.map((line) => String(line[key]).length));
  const widths = Object.fromEntries(keys.map((key) => [key, width(key)]));
  return lines.map((line) => keys.map((key) => String(line[key]).padEnd(widths[key])).join("  ").trimEnd() + "\n").join("");
}

/** The rows as a Markdown table. Transaction hashes differ from run to run, so the docs leave them out. */
export function markdown(rows, { receipts }) {
  const keys = Object.keys(titles).filter((key) => receipts || key !== "receipt");
  const line = (cells) => `| ${cells.join(" | ")} |\n`;
  const head = line(keys.map((key) => titles[key])) + line(keys.map(() => "---"));
  return head + rows.map((row) => line(keys.map((key) => row[key]))).join("");
}

/** The page with the text between its markers replaced. */
export function replaceBetweenMarkers(page, table) {
  const from = page.indexOf(begin);
  const to = page.indexOf(end);
  if (from < 0 || to < from) throw new Error(`docs/interop.md needs the lines ${begin} and ${end}`);
  return page.slice(0, from + begin.length) + "\n\n" + table + "\n" + page.slice(to);
}

function shorten(hash) {
  return hash.length > 16 ? `${hash.slice(0, 10)}…${hash.slice(-4)}` : hash;
}
