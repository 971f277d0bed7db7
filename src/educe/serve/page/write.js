// Generators: a chat where the model has one, else a text that it continues; token by token.
import { events, json, send } from "./api.js";
import { codePanel, openaiCode } from "./snippets.js";
import { alertBox, el, facts, field, milliseconds } from "./ui.js";

/** The view of a generator. */
export function writeView(model) {
  const log = el("div.log", { role: "log", "aria-label": model.chats ? "Conversation" : "Text", tabIndex: 0 });
  const status = el("div.status", { role: "status" });
  const code = el("div");
  const text = el("textarea", { rows: model.chats ? 2 : 3, value: model.chats ? "" : "Once upon a time" });
  const go = el("button.primary", {}, model.chats ? "Send" : "Continue");
  const stop = el("button", { type: "button", hidden: true, click: () => controller?.abort() }, "Stop");
  const clear = el("button.plain", { type: "button", click: reset }, "Clear");
  const options = samplingOptions(model);
  let messages = [];
  let controller = null;

  function reset() {
    controller?.abort();
    messages = [];
    for (const part of [log, status, code]) part.replaceChildren();
    log.hidden = true;
    text.focus();
  }

  async function run(event) {
    event?.preventDefault();
    const prompt = text.value;
    if (controller || !prompt.trim()) return;
    const path = model.chats ? "/v1/chat/completions" : "/v1/completions";
    if (model.chats) {
      messages.push({ role: "user", content: prompt });
      log.append(el("div.turn.user", {}, el("p.who", {}, "You"), el("p.said", {}, prompt)));
      text.value = "";
    } else {
      log.replaceChildren();
    }
    const said = el("p.said");
    if (!model.chats) said.append(el("span.prompt", {}, prompt));
    log.hidden = false;
    log.append(el("div.turn", { "aria-busy": "true" }, model.chats ? el("p.who", {}, model.name) : null, said));
    const body = { model: model.name, ...(model.chats ? { messages: [...messages] } : { prompt }), ...options.values(), stream: true };
    code.replaceChildren(codePanel(openaiCode(path, model.chats ? "chat.completions" : "completions", body)));
    controller = new AbortController();
    go.hidden = true;
    stop.hidden = false;
    const run = { start: performance.now(), first: null, count: 0, usage: null, reason: "" };
    let written = "";
    try {
      const response = await send(path, json({ ...body, stream_options: { include_usage: true } }, controller.signal));
      for await (const part of events(response)) {
        if (part.error) throw new Error(part.error.message);
        run.usage = part.usage ?? run.usage;
        const [choice] = part.choices;
        if (!choice) continue;
        run.reason = choice.finish_reason ?? run.reason;
        const piece = (model.chats ? choice.delta.content : choice.text) ?? "";
        if (!piece) continue;
        run.first ??= performance.now();
        run.count += 1;
        written += piece;
        const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
        said.append(piece);
        if (isAtEnd) log.scrollTop = log.scrollHeight;
        show(run);
      }
    } catch (fault) {
      if (fault.name === "AbortError") run.reason = "stopped";
      else said.parentElement.append(alertBox(fault));
    }
    if (model.chats) messages.push({ role: "assistant", content: written });
    said.parentElement.removeAttribute("aria-busy");
    controller = null;
    go.hidden = false;
    stop.hidden = true;
    show(run);
    text.focus();
  }

  function show({ start, first, count, usage, reason }) {
    if (first === null) return;
    const tokens = usage?.completion_tokens ?? count;
    const elapsed = (performance.now() - first) / 1000;
    const rate = tokens > 1 && elapsed > 0 ? `${((tokens - 1) / elapsed).toFixed(1)} / s` : "–";
    const words = { stop: "at its end", length: "at the limit", stopped: "by you", tool_calls: "to call a tool" };
    status.replaceChildren(facts([["Tokens", tokens], ["Tokens per second", rate], ["First token", milliseconds(first - start)], ...(reason ? [["Ended", words[reason] ?? reason]] : [])]));
  }

  text.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) run(event); });
  document.addEventListener("keydown", function escape(event) {
    if (!log.isConnected && controller === null && !text.isConnected) document.removeEventListener("keydown", escape);
    else if (event.key === "Escape") controller?.abort();
  });
  log.hidden = true;
  const form = el("form.stack", { submit: run },
    field(model.chats ? "Message" : "Beginning", text, "Enter sends it, Shift+Enter begins a line, Escape stops."),
    options.element, el("div.row.actions", {}, go, stop, clear));
  return el("div.view.write", {}, ...(model.chats ? [log, form] : [form, log]), status, code);
}

function samplingOptions(model) {
  const number = (attributes) => el("input", { type: "number", inputMode: "decimal", ...attributes });
  const inputs = {
    max_tokens: number({ min: 1, step: 1, value: 200 }),
    temperature: number({ min: 0, max: 100, step: 0.05, value: 0.8 }),
    top_p: number({ min: 0.01, max: 1, step: 0.01, placeholder: "1" }),
    top_k: number({ min: 0, step: 1, placeholder: "off" }),
    seed: number({ min: 0, step: 1, placeholder: "any" }),
  };
  const names = { max_tokens: "Most tokens", temperature: "Temperature", top_p: "Top p", top_k: "Top k", seed: "Seed" };
  const fields = Object.entries(inputs).map(([name, input]) => field(names[name], input));
  return {
    element: el("details.options", {}, el("summary", {}, "Sampling"), el("div.grid", {}, fields)),
    values: () => Object.fromEntries(Object.entries(inputs).filter(([, input]) => input.value !== "").map(([name, input]) => [name, Number(input.value)])),
  };
}
