// What the tests check of a page by hand: names, headings, landmarks, table heads, and the contrast of all visible text.
function structure() {
  const problems = [];
  const text = (node) => (node ? node.textContent.trim() : "");
  for (const node of document.querySelectorAll("button, a, select, input, summary, [role=region]")) {
    if (!node.getAttribute("aria-label") && !text(node) && !text(node.closest("label"))) problems.push(`no name: ${node.outerHTML.slice(0, 80)}`);
  }
  let level = 0;
  for (const node of document.querySelectorAll("h1, h2, h3, h4")) {
    const next = Number(node.tagName[1]);
    if (next > level + 1) problems.push(`a heading jumps: ${text(node)}`);
    level = next;
  }
  for (const name of ["header", "nav", "main", "footer", "h1"]) {
    if (document.querySelectorAll(name).length !== 1) problems.push(`not one ${name}`);
  }
  for (const head of document.querySelectorAll("th")) if (!head.scope) problems.push(`no scope: ${text(head)}`);
  for (const image of document.querySelectorAll("svg")) {
    if (!image.getAttribute("aria-label") && image.getAttribute("aria-hidden") !== "true") problems.push("a figure without a name");
  }
  return problems;
}

function lowContrast() {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = rgba(getComputedStyle(node).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const low = new Set(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !node.checkVisibility() || node.disabled || node.closest("script, option")) continue;
    const style = getComputedStyle(node);
    const both = [luminance(rgba(node.closest("svg") ? style.fill : style.color)), luminance(behind(node))];
    const ratio = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    if (ratio < 4.5) low.add(`${ratio.toFixed(2)} ${node.tagName} ${text.slice(0, 30)}`);
  }
  return [...low];
}
