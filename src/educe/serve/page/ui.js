// Elements, and the few parts that every view is made of.

/** Make an element; attributes that are functions are listeners, null children are left out. */
export function el(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const made = document.createElement(name || "div");
  if (classes.length) made.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(key, value);
    else if (key in made && key !== "list" && key !== "form") made[key] = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** Make an element of SVG. */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export const percent = (score) => `${(score * 100).toFixed(score < 0.0995 ? 2 : 1)} %`;

export function milliseconds(value) {
  if (value >= 10000) return `${(value / 1000).toFixed(1)} s`;
  return `${value < 10 ? value.toFixed(2) : value.toFixed(value < 100 ? 1 : 0)} ms`;
}

export function seconds(value) {
  const minutes = Math.floor(value / 60);
  return minutes ? `${minutes}:${(value % 60).toFixed(1).padStart(4, "0")}` : `${value.toFixed(2)} s`;
}

/** The colour of a score: from amber to green. */
export const scoreColour = (score) => `oklch(0.76 0.17 ${Math.round(65 + 90 * Math.min(1, Math.max(0, score)))})`;

/** A bar as long as a score. */
export function bar(score) {
  const fill = el("span.fill");
  fill.style.inlineSize = `${Math.max(0.5, Math.min(100, score * 100))}%`;
  return el("span.bar", { "aria-hidden": "true" }, fill);
}

/** Labels, best first, each with its score and a bar. */
export function labels(predictions, most = 8) {
  const rows = predictions.slice(0, most).map((each) =>
    el("li", {}, el("span.label", {}, each.label ?? `class ${each.index}`),
      el("span.number", {}, percent(each.score ?? 0)), bar(each.score ?? 0)));
  return el("ol.labels", { "aria-label": "Labels, most likely first" }, rows);
}

export function table(caption, heads, rows) {
  return el("div.scroll", { tabIndex: 0, role: "region", "aria-label": caption },
    el("table", {}, el("caption.hidden", {}, caption),
      el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => cell instanceof HTMLTableCellElement ? cell : el("td", {}, cell)))))));
}

/** A fault, in words. */
export function alertBox(fault) {
  const words = fault.message.charAt(0).toUpperCase() + fault.message.slice(1);
  return el("p.alert", { role: "alert" }, el("strong", {}, fault.title ?? "That did not work."), " ", words);
}

/** A line that says that the model is at work; after a second also for how long, with a button that stops it. */
export function busyLine(stop) {
  const start = performance.now();
  const time = el("span.number", { "aria-hidden": "true" });
  const button = el("button", { type: "button", hidden: true, click: stop }, "Stop");
  const line = el("div.row.actions", {}, el("p.note.busy", {}, "The model is at work … ", time), button);
  const timer = setInterval(() => {
    if (!line.isConnected) return clearInterval(timer);
    time.textContent = `${Math.floor((performance.now() - start) / 1000)} s`;
    button.hidden = false;
    return undefined;
  }, 1000);
  return line;
}

/** A field with its label, and a note below it. */
export function field(text, control, note) {
  control.id ||= `field-${Math.random().toString(36).slice(2)}`;
  return el("div.field", {}, el("label", { htmlFor: control.id }, text), control, note ? el("p.note", {}, note) : null);
}

export function copyButton(textOf) {
  const button = el("button.plain.copy", { type: "button", click: async () => {
    try {
      await navigator.clipboard.writeText(textOf());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl+C";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  } }, "Copy");
  button.setAttribute("aria-live", "polite");
  return button;
}

/** Tabs that arrow keys walk through: [[name, panel], …]. */
export function tabs(label, entries, onSelect = () => {}) {
  const id = `tabs-${Math.random().toString(36).slice(2)}`;
  const buttons = entries.map(([name], index) => el("button", { type: "button", role: "tab", id: `${id}-${index}`, click: () => select(index) }, name));
  const list = el("div.tabs", { role: "tablist", "aria-label": label, keydown: (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length;
    select(next);
    buttons[next].focus();
  } }, buttons);
  entries.forEach(([, panel], index) => {
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-labelledby", `${id}-${index}`);
  });
  function select(chosen) {
    buttons.forEach((button, index) => {
      button.setAttribute("aria-selected", String(index === chosen));
      button.tabIndex = index === chosen ? 0 : -1;
      entries[index][1].hidden = index !== chosen;
    });
    onSelect(chosen);
  }
  select(0);
  return { list, select };
}

/** Where the time of a request went. */
export function timingLine(timing) {
  const parts = [["Round trip", milliseconds(timing.total)]];
  if (timing.run !== undefined) {
    parts.unshift(["Queue", milliseconds(timing.queue)], ["Run", milliseconds(timing.run)]);
    if (timing.rows) parts.push(["Rows in the run", timing.rows]);
  }
  return facts(parts);
}

export function facts(parts) {
  return el("dl.facts", {}, parts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))));
}
