// The page: which models there are, and the view of the one that is chosen.
import { ask, key, send, setKey } from "./api.js";
import { filesView, takesFiles, withTensors } from "./files.js";
import { tensorsView } from "./tensors.js";
import { embedView, translateView } from "./texts.js";
import { alertBox, el, table } from "./ui.js";
import { writeView } from "./write.js";

const at = (id) => document.getElementById(id);
const work = at("work");
const TASKS = {
  "image-classification": "Names what is in a picture",
  "object-detection": "Finds objects in a picture",
  "face-detection": "Finds faces in a picture",
  "audio-classification": "Names what is heard",
  "voice-activity-detection": "Finds speech in a sound",
  "text-classification": "Sorts texts",
  "file-type": "Tells what kind of file it is",
  "tabular-classification": "Sorts the rows of a table",
  "tabular-regression": "Predicts a number for each row",
  "tensor": "Takes and gives tensors",
  "text-generation": "Writes texts",
  "feature-extraction": "Makes vectors of texts",
  "translation": "Translates",
  "automatic-speech-recognition": "Writes down speech",
};
const STATES = { READY: "ready", LOADING: "loading", UNAVAILABLE: "not loaded" };
let models = [];

async function list() {
  const { data } = await ask("/page/models");
  models = data.models;
  at("version").textContent = data.version;
  at("model-list").replaceChildren(...models.map((model) => el("li", {}, el("a", { href: `#${model.name}` },
    el("span.dot", { className: `dot ${model.state.toLowerCase()}`, role: "img", "aria-label": STATES[model.state] }),
    el("span.name", {}, model.name), el("span.note", {}, TASKS[model.task] ?? STATES[model.state])))));
  at("model-select").replaceChildren(...models.map((model) => el("option", { value: model.name }, model.name)));
}

const chosen = () => models.find((model) => model.name === decodeURIComponent(location.hash.slice(1))) ?? models[0];

async function open() {
  let model = chosen();
  if (!model) {
    work.replaceChildren(el("p.note", {}, "This server has no models."));
    return;
  }
  for (const link of at("model-list").querySelectorAll("a")) {
    if (link.hash === `#${model.name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  at("model-select").value = model.name;
  document.title = `${model.name} – Educe`;
  if (!model.kind) work.replaceChildren(el("h1", {}, model.name), el("p.note.busy", {}, "The model is being loaded …"));
  let signature = null;
  try {
    if (!model.kind) {
      await loaded(model);
      await list();
      return open();
    }
    signature = (await ask(`/v2/models/${model.name}`)).data;
  } catch (fault) {
    if (fault.status !== 422) {
      work.replaceChildren(el("h1", {}, model.name), alertBox(fault));
      return undefined;
    }
  }
  if (chosen() !== model) return undefined;
  work.replaceChildren(heading(model, signature), viewOf(model, signature));
  return undefined;
}

/** Have a model loaded that never was: requests for answers do, of which one without tensors is none. */
async function loaded(model) {
  try {
    await send(`/v2/models/${model.name}/infer`, { method: "POST", body: JSON.stringify({ inputs: [] }) });
  } catch (fault) {
    if (fault.status !== 400) throw fault;
  }
}

function heading(model, signature) {
  const parts = [model.title === model.name ? null : model.name, TASKS[model.task] ?? model.task, `version ${model.version}`, STATES[model.state]];
  return el("header.title", {}, el("h1", {}, model.title), el("p.note", {}, parts.filter(Boolean).join(" · ")), signature && signatureOf(signature));
}

function signatureOf({ inputs, outputs }) {
  const row = (role) => ({ name, datatype, shape }) => [role, name, datatype, `[${shape.map((size) => (size < 0 ? "any" : size)).join(", ")}]`];
  return el("details", {}, el("summary", {}, "Signature"), table("Inputs and outputs", ["", "Name", "Type", "Shape"], [...inputs.map(row("Input")), ...outputs.map(row("Output"))]));
}

function viewOf(model, signature) {
  if (model.kind === "generator") return writeView(model);
  if (model.kind === "embedder") return embedView(model);
  if (model.kind === "translator") return translateView(model);
  if (model.kind === "transcriber") return filesView(model);
  if (!takesFiles(model.task)) return tensorsView(model, signature);
  return signature ? withTensors(filesView(model), tensorsView(model, signature)) : filesView(model);
}

function showKey(isShown) {
  at("key-button").hidden = false;
  at("key-form").hidden = !isShown;
  at("key-button").setAttribute("aria-expanded", String(isShown));
  if (isShown) at("key").focus();
}

async function start() {
  try {
    await list();
  } catch (fault) {
    work.replaceChildren(alertBox(fault));
    return;
  }
  await open();
}

at("key-button").addEventListener("click", () => showKey(at("key-form").hidden));
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(at("key").value.trim());
  showKey(false);
  start();
});
document.addEventListener("key-needed", () => showKey(true));
at("model-select").addEventListener("change", (event) => { location.hash = event.target.value; });
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  work.focus();
});
addEventListener("hashchange", open);
for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
at("key").value = key();
at("key-button").hidden = !key();
start();
