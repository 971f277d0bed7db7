// Raw input: a picture, video, sound, text, table or any file, and what the model says of it.
import { ask } from "./api.js";
import { boxList, overlay, peaksOf, timeline } from "./draw.js";
import { codePanel, predictCode, transcribeCode } from "./snippets.js";
import { alertBox, bar, busyLine, el, field, labels, percent, table, tabs, timingLine } from "./ui.js";

const PICTURES = { accept: "image/*,video/*", noun: "picture or a video" };
const SOUNDS = { accept: "audio/*,video/*", noun: "sound" };
const KINDS = {
  "image-classification": PICTURES,
  "object-detection": PICTURES,
  "face-detection": PICTURES,
  "audio-classification": SOUNDS,
  "voice-activity-detection": SOUNDS,
  "automatic-speech-recognition": SOUNDS,
  "text-classification": { accept: ".txt,text/*", noun: "text file", isText: true, hint: "A text; each line is one of its own." },
  "tabular-classification": { accept: ".csv,.tsv,text/csv", noun: "table", isText: true },
  "tabular-regression": { accept: ".csv,.tsv,text/csv", noun: "table", isText: true },
  "file-type": { accept: "", noun: "file of any kind" },
};

export const takesFiles = (task) => task in KINDS;

/** The view of a model that takes files. */
export function filesView(model) {
  const kind = KINDS[model.task];
  const result = el("section.result", { "aria-label": "Answer", "aria-live": "polite" });
  let current = null;

  async function show(file, typed = null) {
    current?.abort();
    const mine = current = new AbortController();
    const seen = await preview(file);
    if (mine !== current) return;
    result.replaceChildren(seen.element, busyLine(() => mine.abort()));
    result.setAttribute("aria-busy", "true");
    let content;
    try {
      const { data, timing } = await request(model, file, mine.signal);
      if (mine !== current) return;
      content = [...await answer(model, data, seen, file), timingLine(timing), codePanel(codeOf(model, file, kind, typed))];
    } catch (fault) {
      if (mine !== current) return;
      content = [seen.element, fault.name === "AbortError" ? el("p.note", {}, "Stopped.") : alertBox(fault)];
    }
    result.removeAttribute("aria-busy");
    result.replaceChildren(...content);
  }

  const drop = dropZone(kind, show);
  if (!kind.isText) return el("div.view", {}, drop, result);
  const text = el("textarea", { rows: 7, spellcheck: false, placeholder: kind.hint ?? "One line of names, then a row a line." });
  if (model.columns.length) {
    text.value = `${model.columns.join(",")}\n`;
    text.classList.add("mono", "rows");
  }
  const run = (event) => {
    event?.preventDefault();
    const type = model.columns.length ? "text/csv" : "text/plain";
    show(new File([text.value], "typed", { type }), text.value);
  };
  text.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(event); });
  const form = el("form.stack", { submit: run }, field(model.columns.length ? "Rows, as CSV" : "Text", text, "Ctrl+Enter runs it."), el("button.primary", {}, "Run"));
  return el("div.view", {}, form, drop, result);
}

async function request(model, file, signal) {
  if (model.kind === "transcriber") {
    const form = new FormData();
    form.append("file", file);
    form.append("model", model.name);
    form.append("response_format", "verbose_json");
    return ask("/v1/audio/transcriptions", { method: "POST", body: form, signal });
  }
  const type = file.type || "application/octet-stream";
  return ask(`/v1/models/${model.name}/predict`, { method: "POST", body: file, headers: { "content-type": type }, signal });
}

function codeOf(model, file, kind, typed) {
  if (model.kind === "transcriber") return transcribeCode(model.name, file.name);
  return predictCode(model.name, file.name, kind.isText ? file.type : "", typed);
}

function dropZone(kind, show) {
  const input = el("input.hidden", { type: "file", accept: kind.accept, change: () => { if (input.files[0]) show(input.files[0]); input.value = ""; } });
  const zone = el("label.drop", {}, input, el("span", {}, el("b", {}, `Choose a ${kind.noun}`), el("span.note", {}, "or drop it here, or paste it")));
  const over = (event) => { event.preventDefault(); zone.classList.add("over"); };
  zone.addEventListener("dragenter", over);
  zone.addEventListener("dragover", over);
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    if (event.dataTransfer.files[0]) show(event.dataTransfer.files[0]);
  });
  const paste = (event) => {
    if (!zone.isConnected) return document.removeEventListener("paste", paste);
    const [file] = event.clipboardData?.files ?? [];
    if (file) { event.preventDefault(); show(file); }
    return undefined;
  };
  document.addEventListener("paste", paste);
  return zone;
}

/** What the browser can show of a file: {element, kind, width, height, player}. */
async function preview(file) {
  const [major] = file.type.split("/");
  const url = URL.createObjectURL(file);
  if (major === "image") {
    const image = el("img", { src: url, alt: `The picture ${file.name}` });
    try {
      // An element shows a broken picture as an empty box, without a fault.
      (await createImageBitmap(file)).close();
      await image.decode();
      return { element: el("figure.picture", {}, image), width: image.naturalWidth, height: image.naturalHeight };
    } catch { /* a picture that is broken or that only the server can read: its name is shown */ }
  }
  if (major === "video") {
    const video = el("video", { src: url, controls: true, muted: true, playsInline: true, "aria-label": `The video ${file.name}` });
    if (await loaded(video)) return { element: el("figure.picture", {}, video), player: video, width: video.videoWidth, height: video.videoHeight };
  }
  if (major === "audio") {
    const player = el("audio", { src: url, controls: true, "aria-label": `The sound ${file.name}` });
    if (await loaded(player)) return { element: el("figure.sound", {}, player), player };
  }
  const size = file.size < 10000 ? `${file.size} bytes` : `${(file.size / 1000).toLocaleString(undefined, { maximumFractionDigits: 0 })} kB`;
  const note = major === "image" ? `${size} · the browser cannot show it` : size;
  return { element: el("p.file", {}, el("b", {}, file.name), " ", el("span.note", {}, note)) };
}

const loaded = (player) => new Promise((resolve) => {
  player.addEventListener("loadedmetadata", () => resolve(true), { once: true });
  player.addEventListener("error", () => resolve(false), { once: true });
});

async function answer(model, data, seen, file) {
  if (model.kind === "transcriber") return transcript(data, seen, file);
  const answers = Array.isArray(data) ? data : [data];
  if (answers.some((each) => each.time_seconds !== undefined)) return video(answers, seen);
  if (model.columns.length || answers.length > 1) return [await rowsTable(answers, file)];
  const { predictions = [] } = answers[0];
  if (predictions.some((each) => each.start_seconds !== undefined)) return [seen.element, ...await wave(predictions, seen, file)];
  if (model.task.endsWith("detection") && !model.task.startsWith("voice")) return boxes(predictions, seen);
  if (model.task.startsWith("voice")) return [seen.element, el("p.summary", {}, "No speech in it.")];
  return [el("div.pair", {}, seen.element, labels(predictions))];
}

function boxes(predictions, seen) {
  const summary = el("p.summary", {}, counted(predictions));
  if (!seen.width) return [seen.element, summary, boxList(predictions, () => {})];
  const { layer, show, point } = overlay(seen.width, seen.height);
  show(predictions);
  seen.element.append(layer);
  return [el("div.pair", {}, seen.element, el("div", {}, summary, boxList(predictions, point)))];
}

function counted(predictions) {
  if (!predictions.length) return "Nothing that the model knows.";
  const counts = new Map();
  for (const { label } of predictions) counts.set(label ?? "object", (counts.get(label ?? "object") ?? 0) + 1);
  return [...counts].sort((one, other) => other[1] - one[1]).map(([label, count]) => `${count}\u00a0×\u00a0${label}`).join(", ");
}

function video(answers, seen) {
  const place = el("div");
  const { layer, show, point } = overlay(seen.width ?? 1, seen.height ?? 1);
  let shown = -1;
  function at(time) {
    let index = answers.findIndex((each) => (each.time_seconds ?? 0) > time + 0.001) - 1;
    if (index < 0) index = answers.at(-1).time_seconds <= time ? answers.length - 1 : 0;
    if (index === shown) return;
    shown = index;
    const { predictions = [] } = answers[index];
    const hasBoxes = predictions.some((each) => each.box);
    show(hasBoxes ? predictions : []);
    place.replaceChildren(el("p.summary", {}, `Frame ${answers[index].frame}, ${(answers[index].time_seconds ?? 0).toFixed(2)} s`), hasBoxes ? boxList(predictions, point) : labels(predictions));
  }
  at(0);
  if (seen.player) {
    seen.element.append(layer);
    const follow = () => {
      at(seen.player.currentTime);
      if (!seen.player.paused && seen.player.isConnected) requestAnimationFrame(follow);
    };
    seen.player.addEventListener("play", follow);
    seen.player.addEventListener("seeked", () => at(seen.player.currentTime));
  }
  return [el("p.summary", {}, `${answers.length} frames`), el("div.pair", {}, seen.element, place)];
}

async function wave(segments, seen, file) {
  try {
    const { peaks, duration } = await peaksOf(file);
    return [timeline(peaks, duration, segments, seen.player ?? new Audio())];
  } catch {
    return [table("Segments", ["From", "To", "Label"], segments.map((each) => [each.start_seconds.toFixed(2), each.end_seconds.toFixed(2), each.text ?? each.label]))];
  }
}

async function transcript(data, seen, file) {
  const segments = (data.segments ?? []).map((each) => ({ start_seconds: each.start, end_seconds: each.end, text: each.text }));
  return [seen.element, el("p.transcript", {}, data.text || "Nothing was said."), ...(segments.length ? await wave(segments, seen, file) : [])];
}

async function rowsTable(answers, file) {
  const isText = file.type === "text/plain";
  const lines = isText ? (await file.text()).split(/\r?\n/) : [];
  const rows = answers.map((each, index) => {
    const row = each.row ?? index;
    if (each.error) return [String(row + 1), each.error.cause, ""];
    const [best] = each.predictions ?? [];
    const name = isText ? lines[row]?.slice(0, 90) || String(row + 1) : String(row + 1);
    if (best?.value !== undefined) return [name, best.value.toPrecision(6), ""];
    return [name, best?.label ?? String(best?.index ?? ""), el("span.score", {}, bar(best?.score ?? 0), el("span.number", {}, percent(best?.score ?? 0)))];
  });
  const last = answers[0].predictions?.[0]?.value === undefined ? "Score" : "";
  return table("Answers, row by row", [isText ? "Text" : "Row", answers[0].predictions?.[0]?.value === undefined ? "Label" : "Value", last], rows);
}

/** Two views of one model, side by side in tabs. */
export function withTensors(first, tensors) {
  const { list } = tabs("Kind of input", [["Try it", first], ["Tensors", tensors]]);
  return el("div", {}, list, first, tensors);
}
