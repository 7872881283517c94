// OpenAI's library for Node.js: chat completions, responses, completions, embeddings, models.

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { ASK_WEATHER, EMBEDDER, LONG, MODEL, QUESTION, UNKNOWN_MODEL, WRONG_KEY, main, refusal, secondsUntilIdle } from "./facts.mjs";

const client = new OpenAI();
const Person = z.object({ name: z.string(), age: z.int() });
const WEATHER = {
  type: "function",
  function: {
    name: "weather",
    description: "The weather in a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

function question(content = QUESTION) {
  return [{ role: "user", content }];
}

await main({
  async chat() {
    const answer = await client.chat.completions.create({ model: MODEL, messages: question() });
    return answer.choices[0].message.content;
  },
  async stream() {
    const pieces = [];
    const chunks = await client.chat.completions.create({ model: MODEL, messages: question(), stream: true });
    for await (const chunk of chunks) pieces.push(chunk.choices[0]?.delta.content ?? "");
    return pieces;
  },
  async tools() {
    const called = [];
    const weather = {
      ...WEATHER.function,
      parse: JSON.parse,
      function: (found) => {
        called.push(found);
        return "rain";
      },
    };
    const runner = client.chat.completions.runTools({
      model: MODEL,
      messages: question(ASK_WEATHER),
      tools: [{ type: "function", function: weather }],
    });
    const text = await runner.finalContent();
    return { name: "weather", arguments: called[0], text };
  },
  async forced_tool() {
    const answer = await client.chat.completions.create({
      model: MODEL,
      messages: question(ASK_WEATHER),
      tools: [WEATHER],
      tool_choice: "required",
    });
    const { name, arguments: text } = answer.choices[0].message.tool_calls[0].function;
    return { name, arguments: text };
  },
  async streamed_tool() {
    let pieces = 0;
    const runner = client.chat.completions.stream({
      model: MODEL,
      messages: question(ASK_WEATHER),
      tools: [WEATHER],
      tool_choice: "required",
    });
    runner.on("tool_calls.function.arguments.delta", () => pieces++);
    const answer = await runner.finalChatCompletion();
    const { name, arguments: text } = answer.choices[0].message.tool_calls[0].function;
    return { name, arguments: text, pieces };
  },
  async structured() {
    const answer = await client.chat.completions.parse({
      model: MODEL,
      messages: question("Ada is 36."),
      response_format: zodResponseFormat(Person, "person"),
    });
    return answer.choices[0].message.parsed;
  },
  async responses() {
    const first = await client.responses.create({ model: MODEL, input: QUESTION });
    const second = await client.responses.create({
      model: MODEL,
      input: "again",
      previous_response_id: first.id,
    });
    return { text: first.output_text, status: second.status };
  },
  async responses_stream() {
    const pieces = [];
    const events = client.responses.stream({ model: MODEL, input: QUESTION });
    events.on("response.output_text.delta", (event) => pieces.push(event.delta));
    const final = await events.finalResponse();
    return { pieces, text: final.output_text };
  },
  async completions() {
    const answer = await client.completions.create({ model: MODEL, prompt: QUESTION, max_tokens: 6 });
    return answer.choices[0].text;
  },
  async embeddings() {
    // asks for base64 and decodes it, by default
    const answer = await client.embeddings.create({ model: EMBEDDER, input: ["a tree", "a forest"] });
    return answer.data.map((item) => item.embedding.length);
  },
  async models() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    return ids;
  },
  wrong_key: () => refusal(() => new OpenAI({ apiKey: WRONG_KEY }).models.list()),
  unknown_model: () =>
    refusal(() => client.chat.completions.create({ model: UNKNOWN_MODEL, messages: question() })),
  async cancel() {
    const chunks = await client.chat.completions.create({
      model: MODEL,
      messages: question(),
      stream: true,
      max_tokens: LONG,
    });
    for await (const chunk of chunks) if (chunk.choices[0]?.delta.content) break;
    return secondsUntilIdle();
  },
});
