// Tensors as JSON: the Open Inference Protocol, with an example made from the model's signature.
import { ask, json } from "./api.js";
import { codePanel, jsonCode, repeated, unquoted } from "./snippets.js";
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
      const { data, timing } = await ask(path, json(withZeros(body, (element, count) => Array(count).fill(element))));
      const rows = data.outputs.map((each) => [each.name, each.datatype, `[${each.shape.join(", ")}]`]);
      result.replaceChildren(table("Outputs", ["Output", "Type", "Shape"], rows), el("pre.json", { tabIndex: 0, "aria-label": "The answer as JSON" }, shortened(data)), timingLine(timing), codeOf(path, body));
    } catch (fault) {
      result.replaceChildren(alertBox(fault));
    }
  }
  const form = el("form.stack", { submit: run }, field("Request, as JSON", text, "An example made from the signature: sizes that vary are 1, elements are 0. Data that is empty stands for as many zeros as the shape says."), el("button.primary", {}, "Run"));
  return el("div.view", {}, form, result);
}

function example({ inputs }) {
  return { inputs: inputs.map(({ name, datatype, shape }) => {
    const sizes = shape.map((size) => (size < 0 ? 1 : size));
    const count = countOf(sizes);
    return { name, datatype, shape: sizes, data: count > MOST_ELEMENTS ? [] : Array(count).fill(zeroOf(datatype)) };
  }) };
}

const countOf = (shape) => shape.reduce((product, size) => product * size, 1);
const zeroOf = (datatype) => ({ BOOL: false, BYTES: "" })[datatype] ?? 0;
const isLeftOut = (input) => Array.isArray(input?.data) && !input.data.length && Array.isArray(input.shape) && countOf(input.shape) > 0;

/** A request with what `zeros` makes of an element and a number in the place of data that is left out. */
function withZeros(body, zeros) {
  if (!Array.isArray(body?.inputs)) return body;
  const whole = (input) => (isLeftOut(input) ? { ...input, data: zeros(zeroOf(input.datatype), countOf(input.shape)) } : input);
  return { ...body, inputs: body.inputs.map(whole) };
}

function codeOf(path, body) {
  const code = jsonCode(path, withZeros(body, repeated));
  // Nobody writes out so many zeros for curl.
  return codePanel(body.inputs.some(isLeftOut) ? { Python: code.Python } : code);
}

const pretty = (value) => unquoted(JSON.stringify(value, (key, each) => (key === "data" || key === "shape" ? `\u0001${JSON.stringify(each)}` : each), 2));

function shortened(data) {
  return pretty({ ...data, outputs: data.outputs.map((each) => ({ ...each, data: each.data.length > 200 ? [...each.data.slice(0, 200), `… ${each.data.length - 200} more`] : each.data })) });
}
