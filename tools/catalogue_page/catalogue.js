"use strict";
// The list has the fragment `#?words=...&family=...`, a model's page `#ID`. Text from the data only ever becomes the
// text of a node, never markup.

const { models, families, version } = CATALOGUE;
const byId = new Map(models.map((model) => [model.id, model]));
const form = document.getElementById("filters");
const field = (name) => form.elements.namedItem(name);
const size = ([height, width]) => (height === width ? String(height) : `${height}x${width}`);
const USUAL_KIND = "imagenet-1k top-1";
let axis = "flops";

// ---------------------------------------------------------------- nodes

function node(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function drawn(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const link = (id) => node("a", { href: `#${id}` }, id);

// ---------------------------------------------------------------- figures

const figure = (value) => (value >= 99.95 ? value.toFixed(0) : value >= 9.995 ? value.toFixed(1) : value.toFixed(2));
const millions = (count) => figure(count / 1e6);
const giga = (count) => figure(count / 1e9);
const sorting = () => ({ key: field("sort").value.replace(/^-/, ""), down: field("sort").value.startsWith("-") });
const licence = (model) => model.license + (model.restricted ? "*" : "");

function accuracy(model) {
  const values = model.metrics.filter((metric) => metric.kind === field("kind").value).map((metric) => metric.value);
  return values.length ? Math.max(...values) : null;
}

const COLUMNS = [
  { key: "id", title: "Model", value: (model) => model.id },
  { key: "family", title: "Family", value: (model) => model.family },
  { key: "params", title: "Params, M", number: true, value: (model) => model.params, text: (model) => millions(model.params) },
  { key: "flops", title: "GFLOPs", number: true, value: (model) => model.flops, text: (model) => giga(model.flops) },
  { key: "image", title: "Image", number: true, value: (model) => model.image[0] * model.image[1], text: (model) => size(model.image) },
  { key: "patch", title: "Patch", number: true, value: (model) => model.patch[0] * model.patch[1], text: (model) => size(model.patch) },
  {
    key: "accuracy", title: "Accuracy, %", number: true, value: accuracy,
    text: (model) => (accuracy(model) === null ? "-" : accuracy(model).toFixed(1)),
  },
  { key: "pretrain", title: "Pre-trained on", value: (model) => model.pretrain },
  { key: "head", title: "Classes", number: true, value: (model) => model.classes, text: (model) => (model.classes ? model.classes.toLocaleString("en") : "-") },
  { key: "license", title: "Licence", value: licence, text: (model) => licence(model) + (model.gated ? ", login" : "") },
  { key: "formats", title: "Formats", value: (model) => model.formats.join(", ") },
];

// ---------------------------------------------------------------- filters

const haystacks = new Map(models.map((model) => [model, [
  model.id, ...model.aliases, model.family, families[model.family], ...Object.values(model.data), model.license,
  ...model.formats, ...model.sources.map((source) => source.repo ?? source.url ?? ""),
].join(" ").toLowerCase()]));

const TESTS = {
  words: (model, value) => value.toLowerCase().split(/\s+/).every((word) => haystacks.get(model).includes(word)),
  family: (model, value) => model.family === value,
  pretrain: (model, value) => model.pretrain === value,
  license: (model, value) => (value === "*open" ? !model.restricted && model.license !== "unknown" : model.license === value),
  format: (model, value) => model.formats.includes(value),
  image: (model, value) => size(model.image) === value,
  patch: (model, value) => size(model.patch) === value,
  head: (model, value) => (model.classes > 0) === (value === "yes"),
  gated: (model, value) => model.gated === (value === "yes"),
  maxparams: (model, value) => model.params <= Number(value) * 1e6,
  maxflops: (model, value) => model.flops <= Number(value) * 1e9,
  minaccuracy: (model, value) => accuracy(model) !== null && accuracy(model) >= Number(value),
};

function chosen() {
  const tests = Object.entries(TESTS)
    .map(([name, test]) => [test, field(name).value.trim()])
    .filter(([, value]) => value !== "");
  const found = models.filter((model) => tests.every(([test, value]) => test(model, value)));
  const { key, down } = sorting();
  const column = COLUMNS.find((one) => one.key === key);
  if (!column) return found;
  const order = down ? -1 : 1;
  return found.sort((one, other) => {
    const [a, b] = [column.value(one), column.value(other)];
    if (a === null || b === null) return (a === null) - (b === null); // what is not known comes last, either way
    return order * (column.number ? a - b : a.localeCompare(b, "en", { numeric: true }));
  });
}

function fill(name, values, label = (value) => value) {
  for (const value of values) field(name).append(node("option", { value }, label(value)));
}

function unique(values) {
  return [...new Set(values)].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
}

function kinds() {
  const counts = new Map();
  for (const model of models) {
    for (const kind of new Set(model.metrics.map((metric) => metric.kind))) counts.set(kind, (counts.get(kind) ?? 0) + 1);
  }
  return [...counts].sort(([a, m], [b, n]) => (b === USUAL_KIND) - (a === USUAL_KIND) || n - m);
}

// ---------------------------------------------------------------- list

function showList() {
  const found = chosen();
  const count = `${found.length.toLocaleString("en")} of ${models.length.toLocaleString("en")} models`;
  document.getElementById("count").textContent = found.length ? count : `${count}: fewer words or filters find more`;
  document.querySelector("#models tbody").replaceChildren(...found.map((model) => node("tr", {}, ...COLUMNS.map((column) => {
    const text = (column.text ?? column.value)(model);
    if (column.key === "id") return node("th", { scope: "row" }, link(model.id));
    return node("td", { className: column.number ? "number" : "", "data-label": column.title }, text);
  }))));
  for (const header of document.querySelectorAll("#models thead th")) {
    const { key, down } = sorting();
    if (header.dataset.key === key) header.setAttribute("aria-sort", down ? "descending" : "ascending");
    else header.removeAttribute("aria-sort");
  }
  showScatter(found);
}

function sortBy(key) {
  const now = sorting();
  const down = now.key === key ? !now.down : key === "accuracy"; // the best first
  field("sort").value = (down ? "-" : "") + key;
  changed();
}

// ---------------------------------------------------------------- scatter

const BOX = { left: 44, right: 788, top: 12, bottom: 350 };

function showScatter(found) {
  const cost = (model) => model[axis];
  const points = models.filter((model) => accuracy(model) !== null).map((model) => ({ model, x: Math.log10(cost(model)), y: accuracy(model) }));
  const svg = document.getElementById("scatter");
  const title = document.getElementById("chart-title");
  if (!points.length) { svg.replaceChildren(); return; }
  const on = new Set(found);
  const [left, right] = [Math.min(...points.map((p) => p.x)) - 0.05, Math.max(...points.map((p) => p.x)) + 0.05];
  const low = Math.floor((Math.min(...points.map((p) => p.y)) - 1) / 5) * 5;
  const high = Math.min(100, Math.ceil((Math.max(...points.map((p) => p.y)) + 0.5) / 5) * 5);
  const px = (x) => BOX.left + ((x - left) / (right - left)) * (BOX.right - BOX.left);
  const py = (y) => BOX.bottom - ((y - low) / (high - low)) * (BOX.bottom - BOX.top);

  const grid = [];
  for (let y = low; y <= high; y += 10) {
    grid.push(drawn("line", { x1: BOX.left, x2: BOX.right, y1: py(y), y2: py(y) }),
      drawn("text", { x: BOX.left - 6, y: py(y) + 4, "text-anchor": "end" }, String(y)));
  }
  const unit = axis === "flops" ? 9 : 6;
  for (let power = -3; power < 7; power += 1) {
    for (const digit of [1, 3]) {
      const x = Math.log10(digit) + power + unit;
      if (x < left || x > right) continue;
      grid.push(drawn("line", { x1: px(x), x2: px(x), y1: BOX.top, y2: BOX.bottom }),
        drawn("text", { x: px(x), y: BOX.bottom + 20, "text-anchor": "middle" }, (digit * 10 ** power).toLocaleString("en")));
    }
  }
  const cause = axis === "flops" ? "GFLOPs" : "million parameters";
  grid.push(drawn("text", { x: BOX.right, y: BOX.bottom + 43, "text-anchor": "end" }, `${cause} (logarithmic)`),
    drawn("text", { x: BOX.left, y: BOX.bottom + 43 }, `${field("kind").value}, %`));

  // The models that no other chosen one beats at the same cost or less.
  const candidates = points.filter((point) => on.has(point.model)).sort((a, b) => a.x - b.x || b.y - a.y);
  const best = [];
  for (const point of candidates) if (!best.length || point.y > best.at(-1).y) best.push(point);
  const dot = (point, className) => {
    const text = `${point.model.id}: ${point.y.toFixed(1)} %, ${giga(point.model.flops)} GFLOPs, ${millions(point.model.params)} M parameters`;
    const circle = drawn("circle", { cx: px(point.x), cy: py(point.y), r: className === "best" ? 5.5 : 4, class: on.has(point.model) ? "on" : "" }, drawn("title", {}, text));
    // The table has the same links: the keyboard stops at the best ones only.
    const anchor = drawn("a", { href: `#${point.model.id}`, class: className, tabindex: className === "best" ? 0 : -1, "aria-label": text }, circle);
    for (const event of ["pointerenter", "focus"]) {
      anchor.addEventListener(event, () => { document.getElementById("point").textContent = text; });
    }
    return anchor;
  };
  const front = new Set(best);
  const rest = points.filter((point) => !front.has(point)).sort((a, b) => on.has(a.model) - on.has(b.model));
  svg.replaceChildren(...grid, ...rest.map((point) => dot(point, "")),
    drawn("polyline", { points: best.map((point) => `${px(point.x)},${py(point.y)}`).join(" ") }),
    ...best.map((point) => dot(point, "best")));
  document.getElementById("point").textContent = "";
  title.textContent = best.length
    ? `${best.at(-1).model.id} is the most accurate (${best.at(-1).y.toFixed(1)} %); at the same cost, none of these is above the line`
    : nothingToDraw(found);
  for (const button of document.querySelectorAll("[data-axis]")) {
    button.setAttribute("aria-pressed", String(button.dataset.axis === axis));
  }
}

function nothingToDraw(found) {
  const known = unique(found.flatMap((model) => model.metrics.map((metric) => metric.kind)));
  if (!known.length) return "None of these models has a published accuracy";
  return `None of these models has an accuracy of this kind; choose ${known.join(", or ")}`;
}

// ---------------------------------------------------------------- a model's page

function facts(rows) {
  const shown = rows.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return node("dl", { className: "facts" }, ...shown.flatMap(([name, value]) => [node("dt", {}, name), node("dd", {}, value)]));
}

function copyable(text) {
  const button = node("button", { type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(button.previousSibling); // no clipboard here: select it at least
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return node("div", { className: "copy" }, node("pre", { tabIndex: 0 }, node("code", {}, text)), button);
}

function place(source) {
  if (source.kind === "bundled") return `${source.file}, in the package itself`;
  const text = source.url ?? `${source.repo}/${source.file}`;
  const address = source.url ?? `https://huggingface.co/${source.repo}`;
  return address.startsWith("https://") ? node("a", { href: address, rel: "noreferrer" }, text) : text;
}

function hash(source) {
  if (source.sha256) return node("span", {}, node("b", { className: "pinned" }, "pinned: "), node("code", {}, source.sha256));
  const first = source.kind === "hf"
    ? "no public document states it: the hub's own is checked, and the first download is recorded"
    : "no public document states it: the first download is recorded, and later ones must equal it";
  return source.sha256_prefix ? `${source.sha256_prefix}…, only these digits are documented; ${first}` : first;
}

const RELATIONS = {
  subset: "a subset: without the text tower, the head, or another part",
  derived: "derived from those of the other sources",
};

function sourceSection(source, number) {
  return node("div", { className: "source" }, node("h3", {}, `${number + 1}. ${source.format}`), facts([
    ["place", place(source)],
    ["to load this copy", number && source.repo ? node("code", {}, `vit_hub.load("${source.repo}")`) : ""],
    ["sha256", hash(source)],
    ["documented by", source.evidence],
    ["revision", source.revision],
    ["size", source.size ? `${source.size.toLocaleString("en")} bytes` : ""],
    ["access", source.gated ? "a login and acceptance of the terms are needed" : ""],
    ["file name", source.file_assumed ? "assumed from the repository's convention" : ""],
    ["tensors", RELATIONS[source.relation]],
    ["differs in", Object.entries(source.config ?? {}).map(([name, value]) => `${name} = ${plain(value)}`).join(", ")],
    ["parameters", source.params ? source.params.toLocaleString("en") : ""],
    ["note", source.note],
  ]));
}

function plain(value) {
  if (Array.isArray(value)) return value.map(plain).join(", ");
  if (value === null) return "none";
  if (typeof value === "object") return Object.entries(value).map(([k, v]) => `${k} = ${plain(v)}`).join(", ");
  return typeof value === "string" ? value : JSON.stringify(value);
}

function commands(model) {
  const name = model.aliases.find((alias) => /^[a-z0-9][a-z0-9.-]*$/.test(alias)) ?? model.id;
  const own = model.formats[0]; // which can express the model, whatever it is
  const use = model.classes ? `logits = model(images)  # [1, ${model.classes}]` : "features = model.forward_features(images)";
  return [
    node("h2", {}, "Download"), copyable(`vit-hub download ${name}`),
    node("h2", {}, "Load"),
    copyable(`import vit_hub\n\nmodel = vit_hub.load("${name}")\nimages = vit_hub.preprocess(model)("photo.jpg")\n${use}`),
    node("h2", {}, "Convert"), copyable(`vit-hub convert ${name} ${name}.safetensors\nvit-hub convert ${name} ${name}_${own} --to ${own}`),
    node("p", { className: "small" }, "The first line writes vit-hub's own format, the second that of the preferred source. ",
      node("a", { href: "../formats.html" }, "Any other format"), " can be the target, too; one that cannot express the model is refused, with the reason."),
  ];
}

function siblings(model) {
  const found = models.filter((other) => other.family === model.family && other !== model);
  if (!found.length) return [];
  const near = (other) => Math.abs(Math.log(other.params / model.params));
  const nearest = found.sort((a, b) => near(a) - near(b)).slice(0, 24);
  const title = nearest.length < found.length ? `The family's ${nearest.length} models nearest in size` : "Others of the family";
  return [node("h2", {}, title), node("ul", { className: "columns" }, ...nearest.map((other) => node("li", {}, link(other.id))))];
}

function showModel(model) {
  const head = model.classes
    ? `${model.classes.toLocaleString("en")} classes${model.labels ? ` of ${model.labels}` : "; their names are not known"}`
    : "none";
  const all = node("a", { href: "#", id: "back" }, "All models");
  const page = [
    node("p", {}, all), node("h1", { tabIndex: -1 }, model.id),
    node("p", { className: "lead" }, families[model.family]),
    ...model.notes.map((note) => node("p", { className: "small" }, `Note: ${note}.`)),
    facts([
      ["also called", model.aliases.join(", ")],
      ["family", model.family],
      ["parameters", model.params.toLocaleString("en")],
      ["operations", `${giga(model.flops)} GFLOPs for one image`],
      ["image", `${model.image.join("x")} pixels in patches of ${model.patch.join("x")}: ${model.tokens.toLocaleString("en")} tokens`],
      ["classifier", head],
      ["pre-trained on", model.data.pretrain], ["fine-tuned on", model.data.finetune],
      ["licence", model.license + (model.restricted ? " (not an open one: no commercial use, or terms of its own)" : "")],
      ["access", model.gated ? "every source requires a login and acceptance of its terms" : "without a login"],
      ["documented by", model.evidence],
    ]),
    ...commands(model),
  ];
  if (model.metrics.length) {
    page.push(node("h2", {}, "Published results"), facts(model.metrics.map((metric) => [
      metric.name, `${metric.value} %${metric.image_size ? ` at ${metric.image_size} pixels` : ""}, according to ${metric.evidence}`,
    ])));
  }
  page.push(node("h2", {}, "Weights in all their formats, the preferred one first"), ...model.sources.map(sourceSection));
  const preprocess = Object.entries(model.preprocess).map(([name, value]) => [name, plain(value)]);
  page.push(node("h2", {}, "Preprocessing"),
    preprocess.length ? facts(preprocess) : node("p", {}, "As the files beside the weights say."),
    node("h2", {}, "Config"), facts(Object.entries(model.config).map(([name, value]) => [name, plain(value)])),
    node("p", { className: "small" }, "Fields that are not listed have their usual values."), ...siblings(model));
  document.getElementById("model").replaceChildren(...page);
  document.querySelector("#model h1").focus({ preventScroll: true });
}

// ---------------------------------------------------------------- the address

let listAddress = "#";

function changed() {
  const asked = new URLSearchParams();
  for (const name of [...Object.keys(TESTS), "kind", "sort"]) {
    const value = field(name).value.trim();
    if (value && !(name === "kind" && value === USUAL_KIND)) asked.set(name, value);
  }
  if (axis !== "flops") asked.set("axis", axis);
  const text = asked.toString();
  listAddress = text ? `#?${text}` : "#";
  history.replaceState(null, "", listAddress);
  showList();
}

function ask(asked) {
  for (const name of [...Object.keys(TESTS), "sort"]) field(name).value = asked.get(name) ?? "";
  field("kind").value = asked.get("kind") ?? USUAL_KIND;
}

function read() {
  const fragment = location.hash.slice(1);
  const model = byId.get(decodeURIComponent(fragment.replace(/%(?![0-9a-f]{2})/gi, "%25")));
  document.getElementById("list").hidden = Boolean(model);
  document.getElementById("model").hidden = !model;
  document.title = `${model ? model.id : "Catalogue of models"} · vit-hub`;
  if (model) {
    showModel(model);
    document.getElementById("back").href = listAddress;
    scrollTo(0, 0);
    return;
  }
  const asked = new URLSearchParams(fragment.startsWith("?") ? fragment.slice(1) : "");
  if (fragment && !fragment.startsWith("?")) asked.set("words", fragment); // an unknown model: what is like it
  ask(asked);
  axis = asked.get("axis") === "params" ? "params" : "flops";
  listAddress = location.hash || "#";
  showList();
}

// ---------------------------------------------------------------- start

document.getElementById("version").textContent = version;
document.getElementById("lead").textContent =
  `${models.length.toLocaleString("en")} sets of weights of Vision Transformers in ${Object.keys(families).length} families: ` +
  "what they are, what they may be used for, where their files are and which public documents say so.";
document.querySelector("#models thead tr").append(...COLUMNS.map((column) => {
  const button = node("button", { type: "button" }, column.title);
  button.addEventListener("click", () => sortBy(column.key));
  return node("th", { scope: "col", "data-key": column.key, className: column.number ? "number" : "" }, button);
}));
fill("family", Object.keys(families).sort());
fill("pretrain", unique(models.map((model) => model.pretrain)));
fill("license", unique(models.map((model) => model.license)));
fill("format", unique(models.flatMap((model) => model.formats)));
fill("image", unique(models.map((model) => size(model.image))));
fill("patch", unique(models.map((model) => size(model.patch))));
for (const { key, title } of COLUMNS) {
  for (const [sign, arrow] of [["", "\u2191"], ["-", "\u2193"]]) field("sort").append(node("option", { value: sign + key }, `${title} ${arrow}`));
}
for (const [kind, count] of kinds()) field("kind").append(node("option", { value: kind }, `${kind} (${count})`));
form.addEventListener("input", changed);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", (event) => {
  event.preventDefault();
  ask(new URLSearchParams());
  changed();
});
for (const button of document.querySelectorAll("[data-axis]")) {
  button.addEventListener("click", () => { axis = button.dataset.axis; changed(); });
}
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.querySelector("#models tbody a, #model h1")?.focus();
});
addEventListener("hashchange", read);
read();
