// Requests: the key, the errors of both interfaces in words, and where the time went.

const KEY = "educe-api-key";
export const key = () => sessionStorage.getItem(KEY) ?? "";
export const setKey = (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY));

/** A request that was refused, with what the server says of it. */
export class Fault extends Error {
  constructor(message, status = 0, title = undefined) {
    super(message);
    this.status = status;
    this.title = title;
  }
}

const TITLES = {
  0: "The server does not answer.",
  401: "A key is needed.",
  404: "There is no such thing.",
  413: "That is too much.",
  422: "The model cannot do that.",
  503: "Not just now.",
  504: "That took too long.",
};

/** Send a request; the answer is the response, whose body is still to be read. */
export async function send(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key()) headers.set("authorization", `Bearer ${key()}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new Fault("Is it still running? Try again when it is.", 0, TITLES[0]);
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = text;
  try {
    const { error } = JSON.parse(text);
    message = typeof error === "string" ? error : error.message;
  } catch { /* the body is no JSON: it is shown as it is */ }
  if (response.status === 401) {
    document.dispatchEvent(new CustomEvent("key-needed"));
    message = key() ? "The server does not know the one that was given." : "Enter one above.";
  }
  throw new Fault(message || `The server answered with status ${response.status}.`, response.status, TITLES[response.status]);
}

/** Send a request and read its answer whole: {data or lines, timing}. */
export async function ask(path, options = {}) {
  const start = performance.now();
  const response = await send(path, options);
  const text = await response.text();
  const timing = { ...serverTiming(response.headers.get("server-timing")), total: performance.now() - start };
  const isLines = response.headers.get("content-type")?.includes("ndjson");
  return { data: isLines ? text.split("\n").filter(Boolean).map((line) => JSON.parse(line)) : JSON.parse(text), timing };
}

export const json = (body, signal) => ({
  method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal,
});

function serverTiming(header) {
  const found = {};
  for (const part of (header ?? "").split(",")) {
    const [, name, kind, value] = part.match(/^\s*(\w+);(dur|desc)="?([\d.]+)/) ?? [];
    if (name) found[name] = kind === "dur" ? Number(value) : value;
  }
  return found;
}

/** Yield the data of server-sent events, as they come. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const blocks = buffer.split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}
