// Tensors as JSON: the Open Inference Protocol, with an example made from the model's signature.
import { ask, json } from "./api.js";
import { codePanel, jsonCode } from "./snippets.js";
import { alertBox, el, field, table, timingLine } from "./ui.js";

const MOST_ELEMENTS = 3000;

/** The view of a model that takes tensors. */
export function tensorsView(model, signature) {
  const result = el("section.result", { "aria-label": "Answer", "aria-live": "polite" });
  const text = el("textarea.mono", { rows: 14, spellcheck: false });
  text.value = pretty(example(signature));
  const path = `/v2/models/${model.name}/infer`;
  async function run(event) {
    event.preventDefault();
    let body;
    try {
      body = JSON.parse(text.value);
    } catch (fault) {
      result.replaceChildren(alertBox({ title: "This is no JSON.", message: fault.message }));
      return;
    }
    try {
      const { data, timing } = await ask(path, json(body));
      const rows = data.outputs.map((each) => [each.name, each.datatype, `[${each.shape.join(", ")}]`]);
      result.replaceChildren(table("Outputs", ["Output", "Type", "Shape"], rows), el("pre.json", { tabIndex: 0, "aria-label": "The answer as JSON" }, shortened(data)), timingLine(timing), codePanel(jsonCode(path, body)));
    } catch (fault) {
      result.replaceChildren(alertBox(fault));
    }
  }
  const form = el("form.stack", { submit: run }, field("Request, as JSON", text, "An example made from the signature: sizes that vary are 1, elements are 0."), el("button.primary", {}, "Run"));
  return el("div.view", {}, form, result);
}

function example({ inputs }) {
  return { inputs: inputs.map(({ name, datatype, shape }) => {
    const sizes = shape.map((size) => (size < 0 ? 1 : size));
    const count = sizes.reduce((product, size) => product * size, 1);
    const element = { BOOL: false, BYTES: "" }[datatype] ?? 0;
    const data = count > MOST_ELEMENTS ? [] : Array(count).fill(element);
    return { name, datatype, shape: sizes, data };
  }) };
}

const pretty = (value) => JSON.stringify(value, (key, each) => (key === "data" || key === "shape" ? `\u0001${JSON.stringify(each)}` : each), 2)
  .replace(/"\\u0001((?:[^"\\]|\\.)*)"/g, (all, inner) => JSON.parse(`"${inner}"`));

function shortened(data) {
  return pretty({ ...data, outputs: data.outputs.map((each) => ({ ...each, data: each.data.length > 200 ? [...each.data.slice(0, 200), `… ${each.data.length - 200} more`] : each.data })) });
}
