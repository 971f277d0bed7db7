// The request that was made, as one would write it elsewhere.
import { key } from "./api.js";
import { copyButton, el, tabs } from "./ui.js";

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
/** A list of one element so many times, which Python's code writes so. */
export const repeated = (element, count) => `\u0001[${python(element)}] * ${count}`;
/** JSON in which texts that begin with U+0001 stand as they are, without quotes. */
export const unquoted = (text) => text.replace(/"\\u0001((?:[^"\\]|\\.)*)"/g, (all, inner) => JSON.parse(`"${inner}"`));
const python = (value) => unquoted(JSON.stringify(value, null, 4))
  .replace(/("(?:[^"\\]|\\.)*")|\b(true|false|null)\b/g, (all, text, word) => text ?? { true: "True", false: "False", null: "None" }[word]);
const auth = () => (key() ? ["-H \"Authorization: Bearer $EDUCE_API_KEY\""] : []);
const curl = (first, ...parts) => [`curl ${first}`, ...parts, ...auth()].join(" \\\n  ");
const headers = () => (key() ? "\n    headers={\"Authorization\": f\"Bearer {os.environ['EDUCE_API_KEY']}\"}," : "");
const imports = () => (key() ? "import os\n\nimport requests\n" : "import requests\n");

/** A file, or a text, to /v1/models/{model}/predict. */
export function predictCode(model, fileName, mediaType, text = null) {
  const url = `${location.origin}/v1/models/${model}/predict`;
  const body = text === null ? `--data-binary @${quote(fileName)}` : `--data-binary ${quote(text)}`;
  const lines = text !== null ? `${python(text)}.encode()` : `open(${python(fileName)}, "rb")`;
  const type = mediaType ? [`-H 'Content-Type: ${mediaType}'`] : [];
  return {
    curl: curl(url, ...type, body),
    Python: `${imports()}
answer = requests.post(
    "${url}",
    data=${lines},${headers()}
)
print(answer.text)`,
  };
}

/** JSON to any route. */
export function jsonCode(path, body) {
  const url = location.origin + path;
  return {
    curl: curl(url, "-H 'Content-Type: application/json'", `-d ${quote(JSON.stringify(body))}`),
    Python: `${imports()}
answer = requests.post(
    "${url}",
    json=${python(body).replaceAll("\n", "\n    ")},${headers()}
)
print(answer.json())`,
  };
}

/** A call of the OpenAI client. */
export function openaiCode(path, method, body) {
  const options = Object.entries(body).map(([name, value]) => `    ${name}=${python(value).replaceAll("\n", "\n    ")},`).join("\n");
  const secret = key() ? "os.environ[\"EDUCE_API_KEY\"]" : "\"none\"";
  const read = { "chat.completions": "part.choices[0].delta.content or \"\"", completions: "part.choices[0].text" }[method];
  const print = body.stream ? `for part in answer:\n    print(${read}, end="", flush=True)` : "print(answer)";
  return {
    curl: curl(`${body.stream ? "--no-buffer " : ""}${location.origin}${path}`, "-H 'Content-Type: application/json'", `-d ${quote(JSON.stringify(body))}`),
    Python: `${key() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${location.origin}/v1", api_key=${secret})
answer = client.${method}.create(
${options}
)
${print}`,
  };
}

/** A sound to /v1/audio/transcriptions. */
export function transcribeCode(model, fileName) {
  const secret = key() ? "os.environ[\"EDUCE_API_KEY\"]" : "\"none\"";
  return {
    curl: curl(`${location.origin}/v1/audio/transcriptions`, `-F file=@${quote(fileName)}`, `-F model=${model}`),
    Python: `${key() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${location.origin}/v1", api_key=${secret})
with open(${python(fileName)}, "rb") as file:
    print(client.audio.transcriptions.create(model="${model}", file=file).text)`,
  };
}

/** The panel that shows them. */
export function codePanel(code) {
  const entries = Object.entries(code);
  const panels = entries.map(([name, text]) => el("div.code", {}, el("pre", { tabIndex: 0, "aria-label": `${name} code` }, el("code", {}, text))));
  let shown = 0;
  const { list } = tabs("Language of the code", entries.map(([name], index) => [name, panels[index]]), (index) => { shown = index; });
  const copy = copyButton(() => entries[shown][1]);
  return el("section.snippets", { "aria-label": "The same request in code" }, el("header", {}, el("h3", {}, "In code"), list, copy), panels);
}
