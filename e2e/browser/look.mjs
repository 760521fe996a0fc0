// What can be measured about how a page looks and reads. It runs in the page and returns a list of complaints.
export function inspect() {
  const problems = [];
  const count = (selector) => document.querySelectorAll(selector).length;
  if (count("main") !== 1) problems.push(`${count("main")} <main>`);
  if (count("[role=status]") !== 1) problems.push(`${count("[role=status]")} elements of the role status`);
  if (count("h1") !== 1) problems.push(`${count("h1")} <h1>`);
  const { scrollWidth, clientWidth } = document.documentElement;
  if (scrollWidth > clientWidth) problems.push(`the page is ${scrollWidth - clientWidth} px wider than the window`);

  const shown = (e) => e.checkVisibility({ visibilityProperty: true, opacityProperty: true }) && e.getClientRects().length > 0;
  const colour = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = colour(getComputedStyle(e).backgroundColor);
      if (c.a > 0.9) return c;
    }
    return colour(matchMedia("(prefers-color-scheme: dark)").matches ? "rgb(0,0,0)" : "rgb(255,255,255)");
  };
  const luminance = ({ r, g, b }) => {
    const [x, y, z] = [r, g, b].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  for (const e of document.querySelectorAll("main *")) {
    const written = [...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim());
    if (!written || !shown(e) || e.closest(".unseen, script, noscript")) continue;
    const style = getComputedStyle(e);
    const [a, b] = [luminance(colour(style.color)), luminance(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) problems.push(`"${e.textContent.trim().slice(0, 30)}" has a contrast of ${ratio.toFixed(2)} only`);
    if (size < 12) problems.push(`"${e.textContent.trim().slice(0, 30)}" is ${size} px high`);
  }
  for (const e of document.querySelectorAll("button, input, .button")) {
    const { width, height } = e.getBoundingClientRect();
    if (shown(e) && e.type !== "radio" && (width < 24 || height < 24)) problems.push(`"${e.textContent.trim()}" is too small for a finger`);
  }
  for (const e of document.querySelectorAll("input")) {
    if (!e.labels?.length || !e.labels[0].textContent.trim()) problems.push(`the input ${e.id} has no label`);
  }
  for (const e of document.querySelectorAll("button, a")) {
    if (shown(e) && !(e.textContent.trim() || e.getAttribute("aria-label"))) problems.push("a button or link without a name");
  }
  return problems;
}
