// OpenAI's own client for JavaScript, unmodified, over every route: `node --test`, in the folder of its node_modules.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import test from "node:test";

const { default: OpenAI, toFile } = createRequire(`${process.cwd()}/`)("openai");
const { EDUCE_URL, EDUCE_KEYED_URL, EDUCE_FULL_URL, EDUCE_SOUND } = process.env;
const options = { apiKey: "none", maxRetries: 0, timeout: 60_000 };
const client = new OpenAI({ ...options, baseURL: `${EDUCE_URL}/v1` });
const messages = [{ role: "user", content: "Once upon a time" }];
const chat = { model: "writer", messages, max_tokens: 8, temperature: 0 };
const schema = {
  type: "object",
  properties: { kind: { enum: ["cat", "dog"] } },
  required: ["kind"],
  additionalProperties: false,
};
const tool = { name: "feed", strict: true, description: "Feed one.", parameters: schema };

async function all(stream) {
  const found = [];
  for await (const each of stream) found.push(each);
  return found;
}

test("models are listed", async () => {
  const names = (await all(client.models.list())).map((each) => each.id);
  assert.ok(names.includes("writer") && names.includes("embedder"));
  assert.equal((await client.models.retrieve("writer")).object, "model");
});

test("chats", async (t) => {
  const whole = await client.chat.completions.create(chat);
  await t.test("are answered", () => {
    assert.equal(whole.choices[0].finish_reason, "length");
    assert.equal(whole.usage.completion_tokens, 8);
    assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + 8);
  });
  await t.test("stream what they answer whole", async () => {
    const asked = { ...chat, stream: true, stream_options: { include_usage: true } };
    const chunks = await all(await client.chat.completions.create(asked));
    const text = chunks.map((each) => each.choices[0]?.delta.content ?? "").join("");
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(chunks.at(-1).usage.completion_tokens, 8);
  });
  await t.test("stream through the client's helper", async () => {
    const runner = client.chat.completions.stream(chat);
    let text = "";
    runner.on("content", (delta) => (text += delta));
    const final = await runner.finalChatCompletion();
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(final.choices[0].message.content, text);
  });
  await t.test("call tools", async () => {
    const asked = { ...chat, max_tokens: 200, tools: [{ type: "function", function: tool }], tool_choice: "required" };
    asked.stop = ["</tool_call>"];
    const found = await client.chat.completions.create(asked);
    const [call] = found.choices[0].message.tool_calls;
    assert.equal(found.choices[0].finish_reason, "tool_calls");
    assert.equal(call.function.name, "feed");
    assert.ok(["cat", "dog"].includes(JSON.parse(call.function.arguments).kind));
    const streamed = await client.chat.completions.stream(asked).finalChatCompletion();
    assert.equal(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
    const answered = await client.chat.completions.create({
      ...chat,
      messages: [
        ...messages,
        found.choices[0].message,
        { role: "tool", tool_call_id: call.id, content: "eaten" },
      ],
    });
    assert.equal(answered.choices[0].message.role, "assistant");
  });
  await t.test("run the client's tools", async () => {
    const run = { ...tool, parse: JSON.parse, function: (asked) => `fed the ${asked.kind}` };
    const runner = client.chat.completions.runTools({
      ...chat,
      max_tokens: 200,
      stop: ["</tool_call>"],
      tool_choice: { type: "function", function: { name: "feed" } },
      tools: [{ type: "function", function: run }],
    });
    await runner.done();
    assert.match(runner.messages.find((each) => each.role === "tool").content, /fed the (cat|dog)/);
  });
  await t.test("follow schemas", async () => {
    const asked = {
      ...chat,
      max_tokens: 200,
      response_format: { type: "json_schema", json_schema: { name: "pet", strict: true, schema } },
    };
    const found = await client.chat.completions.parse(asked);
    assert.ok(["cat", "dog"].includes(found.choices[0].message.parsed.kind));
  });
  await t.test("tell log-probabilities", async () => {
    const found = await client.chat.completions.create({ ...chat, logprobs: true, top_logprobs: 3 });
    const tokens = found.choices[0].logprobs.content;
    assert.equal(tokens.length, 8);
    assert.ok(tokens.every((each) => each.logprob <= 0 && each.top_logprobs.length === 3));
  });
  await t.test("have n, seeds and stops", async () => {
    const asked = { ...chat, n: 3, seed: 7, temperature: 1 };
    const [one, two] = [await client.chat.completions.create(asked), await client.chat.completions.create(asked)];
    const texts = (each) => each.choices.map((choice) => choice.message.content);
    assert.equal(one.choices.length, 3);
    assert.deepEqual(texts(one), texts(two));
    const stopped = await client.chat.completions.create({ ...chat, max_tokens: 50, stop: ["."] });
    assert.equal(stopped.choices[0].finish_reason, "stop");
    assert.ok(!stopped.choices[0].message.content.includes("."));
  });
  await t.test("are aborted", async () => {
    const stream = await client.chat.completions.create({ ...chat, max_tokens: 400, ignore_eos: true, stream: true });
    let count = 0;
    for await (const _ of stream) if (++count === 3) stream.controller.abort();
    assert.ok(count < 20);
    const aborter = new AbortController();
    const long = { ...chat, max_tokens: 400, ignore_eos: true };
    const asked = client.chat.completions.create(long, { signal: aborter.signal });
    aborter.abort();
    await assert.rejects(asked, OpenAI.APIUserAbortError);
    assert.equal((await client.chat.completions.create(chat)).choices[0].finish_reason, "length");
  });
});

test("completions", async (t) => {
  const asked = { model: "writer", prompt: "Once upon a time", max_tokens: 6, temperature: 0 };
  const whole = await client.completions.create(asked);
  await t.test("stream what they answer whole", async () => {
    const chunks = await all(await client.completions.create({ ...asked, stream: true }));
    assert.equal(chunks.map((each) => each.choices[0]?.text ?? "").join(""), whole.choices[0].text);
  });
  await t.test("echo with log-probabilities", async () => {
    const found = await client.completions.create({ ...asked, echo: true, logprobs: 2, max_tokens: 1 });
    const told = found.choices[0].logprobs;
    assert.equal(found.choices[0].text.slice(0, 16), "Once upon a time");
    assert.equal(told.tokens.length, found.usage.total_tokens);
    assert.equal(told.token_logprobs[0], null);
    assert.ok(told.token_logprobs.slice(1).every((each) => each <= 0));
  });
  await t.test("of many prompts keep their order", async () => {
    const found = await client.completions.create({ ...asked, prompt: ["One day", "Once upon a time"] });
    assert.equal(found.choices[1].text, whole.choices[0].text);
    assert.deepEqual(found.choices.map((each) => each.index), [0, 1]);
  });
});

test("responses", async (t) => {
  const asked = { model: "writer", input: "Once upon a time", max_output_tokens: 8, temperature: 0 };
  const whole = await client.responses.create(asked);
  await t.test("are answered", () => {
    assert.equal(whole.status, "incomplete");
    assert.equal(whole.incomplete_details.reason, "max_output_tokens");
    assert.equal(whole.usage.output_tokens, 8);
    assert.ok(whole.output_text);
  });
  await t.test("stream", async () => {
    const events = await all(await client.responses.create({ ...asked, stream: true }));
    const deltas = events.filter((each) => each.type === "response.output_text.delta");
    assert.equal(deltas.map((each) => each.delta).join(""), whole.output_text);
    assert.equal(events[0].type, "response.created");
    assert.equal(events.at(-1).type, "response.incomplete");
    assert.deepEqual(events.map((each) => each.sequence_number), events.map((_, index) => index));
  });
  await t.test("stream through the client's helper", async () => {
    const final = await client.responses.stream(asked).finalResponse();
    assert.equal(final.output_text, whole.output_text);
  });
  await t.test("call tools", async () => {
    const tools = [{ type: "function", ...tool }];
    const found = await client.responses.create({ ...asked, max_output_tokens: 200, tools, tool_choice: "required" });
    const call = found.output.find((each) => each.type === "function_call");
    assert.ok(["cat", "dog"].includes(JSON.parse(call.arguments).kind));
    const items = [
      { role: "user", content: "Once upon a time" },
      ...found.output,
      { type: "function_call_output", call_id: call.call_id, output: "eaten" },
    ];
    assert.ok((await client.responses.create({ ...asked, input: items, tools })).id);
  });
  await t.test("follow schemas", async () => {
    const text = { format: { type: "json_schema", name: "pet", strict: true, schema } };
    const found = await client.responses.parse({ ...asked, max_output_tokens: 200, text });
    assert.ok(["cat", "dog"].includes(found.output_parsed.kind));
  });
  await t.test("remember nothing", async () => {
    const fault = await client.responses.create({ ...asked, previous_response_id: whole.id }).catch((each) => each);
    assert.ok(fault instanceof OpenAI.BadRequestError);
    assert.equal(fault.param, "previous_response_id");
  });
});

test("embeddings come as numbers and as base64", async () => {
  const asked = { model: "embedder", input: ["a text", "another"] };
  const plain = await client.embeddings.create({ ...asked, encoding_format: "float" });
  const packed = await client.embeddings.create({ ...asked, encoding_format: "base64" });
  const read = await client.embeddings.create(asked); // the client asks for base64, and reads it
  assert.equal(plain.data.length, 2);
  assert.equal(typeof packed.data[0].embedding, "string");
  for (const [index, each] of read.data.entries()) {
    assert.deepEqual([...each.embedding].map(Math.fround), plain.data[index].embedding.map(Math.fround));
  }
  assert.ok(plain.usage.prompt_tokens > 0);
});

test("sounds are transcribed", async () => {
  const file = () => toFile(Buffer.from(EDUCE_SOUND, "base64"), "sound.wav");
  const asked = async () => ({ model: "transcriber", file: await file(), language: "en" });
  const { text, usage } = await client.audio.transcriptions.create(await asked());
  assert.equal(usage.type, "duration");
  for (const response_format of ["text", "srt", "vtt"]) {
    const found = await client.audio.transcriptions.create({ ...(await asked()), response_format });
    assert.equal(typeof found, "string");
  }
  const verbose = await client.audio.transcriptions.create({ ...(await asked()), response_format: "verbose_json" });
  assert.equal(verbose.text, text);
  const events = await all(await client.audio.transcriptions.create({ ...(await asked()), stream: true }));
  assert.equal(events.at(-1).type, "transcript.text.done");
  assert.equal(events.at(-1).text, text);
});

test("errors are of the client's classes", async (t) => {
  const refused = (asked, kind, known) =>
    assert.rejects(asked, (fault) => {
      assert.ok(fault instanceof kind, `${fault.constructor.name}: ${fault.message}`);
      assert.deepEqual({ code: fault.code, param: fault.param }, known);
      assert.ok(fault.requestID);
      return true;
    });
  await t.test("404", async () => {
    const known = { code: "model_not_found", param: "model" };
    await refused(client.chat.completions.create({ ...chat, model: "none" }), OpenAI.NotFoundError, known);
    await assert.rejects(client.models.retrieve("none"), OpenAI.NotFoundError);
  });
  await t.test("400", async () => {
    const hot = client.chat.completions.create({ ...chat, temperature: -1 });
    await assert.rejects(hot, (fault) => fault instanceof OpenAI.BadRequestError && fault.param === "temperature");
    const long = client.completions.create({ model: "writer", prompt: "a b ".repeat(5000) });
    await refused(long, OpenAI.BadRequestError, { code: "context_length_exceeded", param: "prompt" });
  });
  await t.test("400 of another kind of model", async () => {
    const wrong = client.embeddings.create({ model: "writer", input: "a" });
    await assert.rejects(wrong, (fault) => fault instanceof OpenAI.BadRequestError && fault.param === "model");
  });
  await t.test("401", async () => {
    const baseURL = `${EDUCE_KEYED_URL}/v1`;
    const wrong = new OpenAI({ ...options, baseURL });
    const known = { code: "invalid_api_key", param: null };
    await refused(wrong.chat.completions.create(chat), OpenAI.AuthenticationError, known);
    const right = new OpenAI({ ...options, baseURL, apiKey: "the-key-of-a-client-0123456789" });
    assert.equal((await right.chat.completions.create(chat)).choices.length, 1);
  });
  await t.test("503 is tried again after the time that it says", async () => {
    const full = new OpenAI({ ...options, baseURL: `${EDUCE_FULL_URL}/v1` });
    const long = { ...chat, max_tokens: 400, ignore_eos: true };
    const many = await Promise.allSettled(Array.from({ length: 40 }, () => full.chat.completions.create(long)));
    const faults = many.filter((each) => each.status === "rejected").map((each) => each.reason);
    assert.ok(faults.length);
    assert.ok(faults.every((each) => each instanceof OpenAI.InternalServerError && each.status === 503), faults[0]);
    assert.ok(faults.every((each) => Number(each.headers.get("retry-after")) > 0));
    const patient = new OpenAI({ ...options, maxRetries: 10, baseURL: `${EDUCE_FULL_URL}/v1` });
    const all = await Promise.all(Array.from({ length: 8 }, () => patient.chat.completions.create(chat)));
    assert.equal(all.length, 8);
  });
});
