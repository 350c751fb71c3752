"use strict";
// All data comes from the JSON embedded in the page, and is only inserted as text.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

const distinct = (values) => [...new Set(values)];
const fixed = (value, digits) => (typeof value === "number" ? value.toFixed(digits) : "–");

// A labelled select element; `options` are [value, text].
function choice(label, options, onchange) {
  const select = element("select", { onchange: () => onchange(select.value) });
  for (const [value, text] of options) select.append(element("option", { value }, text));
  return [element("label", {}, label, select), select];
}

function search(label, oninput) {
  const input = element("input", { type: "search", autocomplete: "off", spellcheck: "false", oninput: () => oninput(words(input.value)) });
  return [element("label", {}, label, input), input];
}

const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
const matches = (text, wanted) => wanted.every((word) => text.includes(word));

// Theme: the system's by default. A choice is remembered if the browser allows it for local files.
{
  const button = byId("theme"), themes = ["system", "light", "dark"];
  let theme = "system";
  try { theme = localStorage.getItem("theme") || theme; } catch { /* not remembered */ }
  const apply = () => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  if (!themes.includes(theme)) theme = "system";
  apply();
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    try { localStorage.setItem("theme", theme); } catch { /* not remembered */ }
    apply();
  });
}

// Sortable tables: a button in each column's head. Numbers sort as numbers; cells without a number come last.
function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = element("button", { type: "button" }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => { const text = row.cells[column].textContent.trim(); return [parseFloat(text.replace("−", "-")), text]; };
      const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => compare(a, b, down));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}

function compare([number, text], [other, otherText], down) {
  const first = Number.isNaN(number), second = Number.isNaN(other);
  if (first !== second) return first ? 1 : -1;
  const order = first ? text.localeCompare(otherText) : number - other;
  return down ? -order : order;
}

document.querySelectorAll("table.sortable").forEach(sortable);

// Heatmaps: cividis; the number in a cell is black or white, depending on which is easier to read.
const CIVIDIS = ["00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "e1cc55", "fee838"].map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));

function shade(share) {
  const place = Math.min(Math.max(share, 0), 1) * (CIVIDIS.length - 1), low = Math.floor(place), high = Math.min(low + 1, CIVIDIS.length - 1);
  const colour = CIVIDIS[low].map((value, i) => Math.round(value + (CIVIDIS[high][i] - value) * (place - low)));
  const linear = colour.map((value) => { const v = value / 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
  const luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return [`rgb(${colour})`, luminance > 0.179 ? "#000" : "#fff"];
}

function cell(value, share, text) {
  const made = element("td", {}, value === null ? "–" : text);
  if (value !== null) [made.style.backgroundColor, made.style.color] = shade(share);
  return made;
}

function heatmap(title, about, corner, columns, rows, density = "") {
  const head = element("tr", {}, element("th", { scope: "col" }, corner), ...columns.map((name) => element("th", { scope: "col" }, name)));
  const body = rows.map(([name, cells]) => element("tr", {}, element("th", { scope: "row" }, name), ...cells));
  const table = element("table", { class: `heat ${density}` }, element("thead", {}, head), element("tbody", {}, ...body));
  const scroll = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, table);
  return element("figure", {}, element("figcaption", {}, title, " ", element("small", {}, about)), scroll);
}

// Heatmaps of settings.
const MOST_PANELS = 24;
if (byId("panels")) {
  const controls = byId("panel-controls"), panels = byId("panels");
  let board = data.panels[0], ordered = [], methods = new Set(), budgets = new Set();

  const boxes = (legend, values, chosen, text) => element("fieldset", {}, element("legend", {}, legend), ...values.map((value) => {
    const box = element("input", { type: "checkbox", onchange: () => { box.checked ? chosen.add(value) : chosen.delete(value); draw(); } });
    box.checked = chosen.has(value);
    return element("label", {}, box, text(value));
  }));

  const draw = () => {
    const chosen = ordered.filter((panel) => methods.has(panel.method) && (panel.budget === null || budgets.has(panel.budget)));
    const shown = chosen.slice(0, MOST_PANELS);
    panels.replaceChildren(...shown.map((panel) => {
      const name = panel.budget === null ? panel.method : `${panel.method} ${panel.budget}`;
      const about = `mean ${panel.mean.toFixed(1)}, ${panel.partial ? `† ${panel.partial} samples` : `n = ${panel.n}`}`;
      return heatmap(name, about, board.corner, board.columns, panel.cells.map((cells, row) => [board.rows[row], cells.map((value) => cell(value, value / 100, Math.round(value)))]));
    }));
    const more = chosen.length > shown.length ? ` The first ${shown.length} are shown.` : "";
    byId("panel-note").textContent = `${chosen.length} of ${board.panels.length} settings are chosen.${more}`;
  };

  const open = (place) => {
    board = data.panels[place];
    ordered = board.panels;
    const allMethods = distinct(board.panels.map((panel) => panel.method));
    const allBudgets = distinct(board.panels.map((panel) => panel.budget).filter((budget) => budget !== null));
    const known = ["FullKV", "CompressKV", "SnapKV", "PyramidKV"].filter((name) => allMethods.includes(name));
    methods = new Set(known.concat(allMethods.filter((name) => !known.includes(name))).slice(0, 4));
    // The two budgets at which most of these methods ran; ties keep the order of the panels.
    const ran = (budget) => board.panels.filter((panel) => panel.budget === budget && methods.has(panel.method)).length;
    budgets = new Set([...allBudgets].sort((a, b) => ran(b) - ran(a)).slice(0, 2));
    const [label, select] = choice("model", data.panels.map((each, i) => [i, each.model]), open);
    select.value = place;
    controls.replaceChildren(...(data.panels.length > 1 ? [label] : []), boxes("methods", allMethods, methods, String), boxes("budgets", allBudgets, budgets, String));
    draw();
  };
  open(0);
}

// Head maps; one is shown at a time.
if (byId("map")) {
  const draw = (place) => {
    const map = data.maps[place];
    const most = Math.max(...map.cells.flat().filter((value) => value !== null));
    const factor = most < 1 ? 100 : 1;
    const rows = map.cells.map((heads, layer) => {
      const order = heads.map((value, head) => [value === null ? Infinity : map.ranks ? value : -value, head]).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
      const picked = new Set(order.slice(0, map.selected).map(([, head]) => head));
      const cells = heads.map((value, head) => {
        const share = map.ranks ? 1 - (value - 1) / most : Math.sqrt(value / (most || 1));
        const made = cell(value, share, map.ranks ? value : (value * factor).toFixed(1));
        if (picked.has(head)) made.classList.add("picked");
        return made;
      });
      return [layer, [...cells, element("td", { class: "bar-cell" }, map.layers[layer].toFixed(1))]];
    });
    const columns = [...map.cells[0].keys(), "% error"];
    const made = map.prompts ? `from ${map.prompts} prompts; ` : "";
    const scale = map.ranks ? "rank among the layer's heads, 1 is best" : `score${factor > 1 ? " × 100" : ""}; shades by its square root`;
    byId("map").replaceChildren(heatmap(`${map.model}: ${map.kind} (${map.source})`, made + scale, "layer", columns, rows, "dense"));
  };
  const [label] = choice("map", data.maps.map((map, i) => [i, `${map.model}: ${map.kind} (${map.source})`]), (value) => draw(Number(value)));
  byId("map-controls").append(label);
  draw(0);
}

// Samples.
function facts(pairs) {
  return element("dl", {}, ...pairs.filter(([, value]) => value !== undefined && value !== null && value !== "").flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

const bytes = (size) => (size >= 1e4 ? `${(size / 1e6).toFixed(2)} MB` : `${size} bytes`);
const plain = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));

// Values as bars and as numbers; `id` distinguishes them for screen readers.
function bars(values, title, about, id) {
  if (!values || !values.length) return null;
  const most = Math.max(...values), width = 240 / values.length, ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg"), path = document.createElementNS(ns, "path");
  svg.setAttribute("class", "bars");
  svg.setAttribute("viewBox", "0 0 240 34");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", values.map((value, place) => { const high = most > 0 ? Math.max(0, (32 * value) / most) : 0; return `M${(place * width).toFixed(1)} 34v-${high.toFixed(1)}h${(width * 0.85).toFixed(1)}v${high.toFixed(1)}z`; }).join(""));
  svg.append(path);
  const text = values.map((value, place) => `${place}: ${value}`).join(" · ");
  return element("details", {}, element("summary", {}, title, element("span", { class: "hidden" }, ` by ${id}`)), svg, element("p", { class: "note" }, `${about}: ${text}`));
}

function kept(layers, id) {
  return layers && bars(layers, `kept by layer: ${Math.min(...layers)} to ${Math.max(...layers)}`, "tokens kept, by layer", id);
}

// The first token of an answer is generated before any eviction and is left out.
function kl(values, id) {
  return values && bars(values, `KL by token: up to ${Math.max(0, ...values)}`, `nats at each token of the full cache's answer after the first${values.length === 128 ? ", the first 128" : ""}`, id);
}

if (byId("sample")) {
  const texts = data.samples.map((sample) => [...sample.at, ...Object.values(sample.prompt).map(plain), ...sample.by.map((each) => `${each.prediction || ""} ${data.settings[each.setting].name}`)].join(" ").toLowerCase());
  const groupOf = (sample) => sample.at.slice(0, 4).join(" · ");
  const groups = distinct(data.samples.map(groupOf));
  let group = groups[0], wanted = [], shown = [];

  const article = (each) => {
    const name = data.settings[each.setting].name;
    const others = Object.entries(each).filter(([key]) => key.startsWith("score_"));
    return element("article", {},
      element("h3", {}, element("span", {}, name), element("span", {}, `score ${fixed(each.score, 1)}`)),
      each.prediction === undefined ? null : element("p", { class: "text" }, each.prediction || "(empty answer)"),
      facts([
        ["KL", typeof each.kl === "number" ? `${each.kl.toFixed(3)} nats per token` : undefined],
        ["agreement", typeof each.agreement === "number" ? `${(100 * each.agreement).toFixed(0)} % of tokens` : undefined],
        ["NLL of the reference", typeof each.reference_nll === "number" ? `${each.reference_nll.toFixed(3)} nats per token` : undefined],
        ...others.map(([key, value]) => [key, typeof value === "number" ? value.toFixed(1) : plain(value)]),
        ["tokens kept", typeof each.realised_budget === "number" ? `${each.realised_budget.toFixed(1)} per layer and head${each.cache_bytes ? `, ${bytes(each.cache_bytes)}` : ""}` : undefined],
        ["tokens generated", each.new_tokens],
      ]),
      kl(each.kl_per_token, name), kept(each.kept, name));
  };

  const draw = () => {
    const sample = shown[Number(picker.value)];
    if (!sample) return byId("sample").replaceChildren();
    const { answers, question, answer, answer_prefix, prompt_tail, ...rest } = sample.prompt;
    const tail = prompt_tail && element("span", { class: "tail" }, `…${prompt_tail}`);
    const prompt = facts([
      ["end of the prompt", tail], ["asked", question], ["the answer opens with", answer_prefix],
      ["answer", answer], ["answers", answers && answers.join("  |  ")],
      ...Object.entries(rest).map(([key, value]) => [key.replaceAll("_", " "), plain(value)]),
    ]);
    byId("sample").replaceChildren(prompt, element("div", { class: "answers" }, ...sample.by.map(article)));
    before.disabled = Number(picker.value) === 0;
    after.disabled = Number(picker.value) === shown.length - 1;
  };

  const list = () => {
    shown = data.samples.filter((sample, place) => (wanted.length ? matches(texts[place], wanted) : groupOf(sample) === group));
    const everywhere = wanted.length ? (sample) => `${groupOf(sample)} · ${sample.at[4]}` : (sample) => sample.at[4];
    picker.replaceChildren(...shown.map((sample, place) => element("option", { value: place }, everywhere(sample))));
    byId("sample-note").textContent = wanted.length ? `${shown.length} of ${data.samples.length} samples have these words.` : `${shown.length} ${shown.length === 1 ? "sample" : "samples"} of this task.`;
    before.disabled = after.disabled = true;
    draw();
  };

  const step = (by) => { picker.value = Number(picker.value) + by; draw(); };
  const [groupLabel] = choice("task", groups.map((name) => [name, name]), (value) => { group = value; input.value = ""; wanted = []; list(); });
  const [sampleLabel, picker] = choice("sample", [], draw);
  const [searchLabel, input] = search("search answers, of all tasks", (value) => { wanted = value; list(); });
  const before = element("button", { type: "button", onclick: () => step(-1) }, "Previous");
  const after = element("button", { type: "button", onclick: () => step(1) }, "Next");
  byId("sample-controls").append(groupLabel, sampleLabel, before, after, searchLabel);
  list();
}

// All settings.
if (byId("setting-table")) {
  const PAGE = 50;
  const columns = [
    ["model", (s) => data.shared[s.at][0]], ["evaluation", (s) => data.shared[s.at][1]], ["task", (s) => data.shared[s.at][2]],
    ["protocol", (s) => data.shared[s.at][3]], ["setting", (s) => s.name], ["score", (s) => s.score, 2],
    ["low", (s) => s.interval && s.interval[0], 1], ["high", (s) => s.interval && s.interval[1], 1], ["n", (s) => s.n, 0],
    ["kept", (s) => s.realised_budget, 1], ["cache MB", (s) => s.cache_bytes && s.cache_bytes / 1e6, 2],
  ];
  const texts = data.settings.map((s) => [...data.shared[s.at], s.name, s.folder].join(" ").toLowerCase());
  let wanted = [], start = 0, sorted = null, down = true;

  const detail = (s) => {
    const environment = data.shared[s.environment], origin = data.shared[s.origin], batches = data.shared[s.batches];
    const at = data.shared[s.at], more = s.more || {};
    const config = Object.fromEntries(data.shared[s.config].map(([key, place]) => [key, data.shared[place]]));
    const commitOf = (each) => (each.git_commit ? each.git_commit + (each.git_dirty ? ", with uncommitted changes" : "") : "not recorded");
    const hardwareOf = (each) => { const of = Object.entries(each.hardware || {}); return of.length ? of.map(([key, value]) => `${key.replaceAll("_", " ")}: ${Array.isArray(value) ? value.join(", ") : value}`).join("; ") : "not recorded"; };
    const versionsOf = (each) => (each.versions ? `Python ${each.python}, ${Object.entries(each.versions).map(([key, value]) => `${key} ${value}`).join(", ")}` : "not recorded");
    const others = Array.isArray(environment.others) ? environment.others.map((each) => `commit ${commitOf(each)}; ${hardwareOf(each)}; ${versionsOf(each)}`) : [];
    const heading = element("h3", {}, `${s.name}: ${at.slice(0, 4).join(" · ")}`);
    byId("setting-detail").replaceChildren(heading, facts([
      ["folder", `runs/${[...at, s.method, s.folder].join("/")}`],
      ["score", `${s.score} ${s.interval ? `(95 % interval ${s.interval.join(" to ")})` : "(one sample: no interval)"}, n = ${s.n}`],
      ...Object.entries(more).map(([key, value]) => [key, value]),
      ["kept whole", s.uncompressed !== undefined ? `${s.uncompressed} samples` : undefined],
      ["truncated", s.truncated !== undefined ? `${s.truncated} prompts` : undefined],
      ["commit", commitOf(environment)], ["dtype", origin.dtype || "not recorded"], ["backend", origin.backend || "not recorded"],
      ["model fingerprint", origin.model_fingerprint || "not recorded"],
      ["hardware", hardwareOf(environment)],
      ["versions", versionsOf(environment)],
      ["other samples are from", others.join("  |  ")],
      ["decoded with", batches.length ? batches.map((batch) => batch.join(", ")).join("  |  ") : "not recorded"],
    ]), element("details", {}, element("summary", {}, "configuration"), element("pre", { tabindex: "0", "aria-label": "configuration" }, JSON.stringify(config, null, 2))));
    byId("setting-detail").focus({ preventScroll: false });
  };

  const value = ([, of, digits], s) => { const it = of(s); return typeof it === "number" ? it.toFixed(digits) : it || "–"; };
  const draw = () => {
    let chosen = data.settings.filter((s, place) => matches(texts[place], wanted));
    if (sorted !== null) {
      const of = columns[sorted][1], key = (s) => { const it = of(s); return [typeof it === "number" ? it : NaN, String(it ?? "")]; };
      chosen = chosen.map((s) => [key(s), s]).sort(([a], [b]) => compare(a, b, down)).map(([, s]) => s);
    }
    start = Math.min(start, Math.max(0, Math.floor((chosen.length - 1) / PAGE) * PAGE));
    const rows = chosen.slice(start, start + PAGE).map((s) => element("tr", {}, ...columns.map((column) => {
      if (column[0] === "setting") return element("th", { scope: "row" }, element("button", { type: "button", class: "link", onclick: () => detail(s) }, s.name));
      return element("td", { class: column.length > 2 ? "number" : false }, value(column, s));
    })));
    const head = columns.map(([name, , digits], place) => element("th", { scope: "col", class: digits !== undefined ? "number" : false, "aria-sort": sorted === place ? (down ? "descending" : "ascending") : false },
      element("button", { type: "button", "data-column": place, onclick: () => { down = sorted === place ? !down : true; sorted = place; start = 0; draw(); byId("setting-table").querySelector(`[data-column="${place}"]`).focus(); } }, name)));
    byId("setting-table").replaceChildren(element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "All settings" }, element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows))));
    byId("setting-note").textContent = chosen.length ? `${start + 1} to ${start + rows.length} of ${chosen.length} settings` : "No setting has these words.";
    before.disabled = start === 0;
    after.disabled = start + PAGE >= chosen.length;
  };
  const [label] = search("search by model, task, method, …", (value) => { wanted = value; start = 0; draw(); });
  const before = element("button", { type: "button", onclick: () => { start -= PAGE; draw(); } }, "Previous page");
  const after = element("button", { type: "button", onclick: () => { start += PAGE; draw(); } }, "Next page");
  byId("setting-controls").append(label, before, after);
  draw();
}
