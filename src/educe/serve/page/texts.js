// Texts to vectors, and texts to other languages.
import { ask, json } from "./api.js";
import { codePanel, jsonCode, openaiCode } from "./snippets.js";
import { alertBox, el, field, table, timingLine } from "./ui.js";

const LINES = "A dog runs across the field.\nA puppy plays in the grass.\nThe bank raises its rates.\nInterest goes up again.";

/** The view of an embedder: how alike are some lines? */
export function embedView(model) {
  return linesView("Lines", LINES, "Compare", async (lines) => {
    const body = { model: model.name, input: lines };
    const { data, timing } = await ask("/v1/embeddings", json(body));
    const vectors = data.data.map((each) => each.embedding);
    const alike = vectors.map((one) => vectors.map((other) => cosine(one, other)));
    const rows = lines.map((line, index) => [el("th", { scope: "row" }, `${index + 1}  ${line}`), ...alike[index].map(shaded)]);
    return [table("How alike the lines are: the cosines of their vectors", ["Line", ...lines.map((_, index) => String(index + 1))], rows),
      el("p.note", {}, `Vectors of ${vectors[0].length} numbers; 1 is the same direction.`), timingLine(timing), codePanel(openaiCode("/v1/embeddings", "embeddings", body))];
  });
}

/** The view of a translator. */
export function translateView(model) {
  const source = el("input", { type: "text", autocomplete: "off", size: 8 });
  const target = el("input", { type: "text", autocomplete: "off", size: 8 });
  const languages = el("div.row", {}, field("From", source), field("To", target));
  return linesView("Text, a sentence a line", "", "Translate", async (lines) => {
    const parameters = Object.fromEntries(Object.entries({ source: source.value.trim(), target: target.value.trim() }).filter(([, value]) => value));
    const body = { inputs: [{ name: "text_input", datatype: "BYTES", shape: [lines.length], data: lines }], ...(Object.keys(parameters).length ? { parameters } : {}) };
    const path = `/v2/models/${model.name}/infer`;
    const { data, timing } = await ask(path, json(body));
    return [el("div.transcript", {}, data.outputs[0].data.map((line) => el("p", {}, line))), timingLine(timing), codePanel(jsonCode(path, body))];
  }, languages);
}

function linesView(label, value, verb, work, more = null) {
  const result = el("section.result", { "aria-label": "Answer", "aria-live": "polite" });
  const text = el("textarea", { rows: 6, value });
  async function run(event) {
    event.preventDefault();
    const lines = text.value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (!lines.length) { text.focus(); return; }
    result.setAttribute("aria-busy", "true");
    try {
      result.replaceChildren(...await work(lines));
    } catch (fault) {
      result.replaceChildren(alertBox(fault));
    }
    result.removeAttribute("aria-busy");
  }
  text.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(event); });
  const form = el("form.stack", { submit: run }, field(label, text, "Ctrl+Enter runs it."), more, el("button.primary", {}, verb));
  return el("div.view", {}, form, result);
}

function cosine(one, other) {
  let product = 0, first = 0, second = 0;
  one.forEach((value, index) => { product += value * other[index]; first += value * value; second += other[index] * other[index]; });
  return product / Math.sqrt(first * second || 1);
}

function shaded(value) {
  const cell = el("td.shaded", {}, value.toFixed(2));
  cell.style.setProperty("--share", `${Math.round(Math.max(0, value) * 55)}%`);
  return cell;
}
