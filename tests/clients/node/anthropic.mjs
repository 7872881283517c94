// Anthropic's library for Node.js: messages, streams, tools, token counts.

import Anthropic from "@anthropic-ai/sdk";
import { ASK_WEATHER, LONG, MODEL, QUESTION, UNKNOWN_MODEL, WRONG_KEY, main, refusal, secondsUntilIdle } from "./facts.mjs";

const client = new Anthropic();
const WEATHER = {
  name: "weather",
  description: "The weather in a city",
  input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};

function body(content = QUESTION, more = {}) {
  return { model: MODEL, max_tokens: 64, messages: [{ role: "user", content }], ...more };
}

function callOf(answer) {
  const { name, input } = answer.content.find((block) => block.type === "tool_use");
  return { name, arguments: input };
}

await main({
  async chat() {
    return (await client.messages.create(body())).content[0].text;
  },
  async stream() {
    const pieces = [];
    const events = client.messages.stream(body());
    events.on("text", (text) => pieces.push(text));
    await events.finalMessage();
    return pieces;
  },
  async tools() {
    const asked = body(ASK_WEATHER, { max_tokens: 200, tools: [WEATHER] });
    const answer = await client.messages.create(asked);
    const call = answer.content.find((block) => block.type === "tool_use");
    const result = { type: "tool_result", tool_use_id: call.id, content: "rain" };
    const turns = [
      { role: "assistant", content: answer.content },
      { role: "user", content: [result] },
    ];
    const final = await client.messages.create({ ...asked, messages: [...asked.messages, ...turns] });
    return { ...callOf(answer), reason: answer.stop_reason, text: final.content[0].text };
  },
  async forced_tool() {
    const tool_choice = { type: "tool", name: "weather" };
    const asked = body(ASK_WEATHER, { max_tokens: 200, tools: [WEATHER], tool_choice });
    return callOf(await client.messages.create(asked));
  },
  async streamed_tool() {
    let pieces = 0;
    const tool_choice = { type: "any" };
    const asked = body(ASK_WEATHER, { max_tokens: 200, tools: [WEATHER], tool_choice });
    const events = client.messages.stream(asked);
    events.on("inputJson", () => pieces++);
    return { ...callOf(await events.finalMessage()), pieces };
  },
  async count_tokens() {
    const { model, messages } = body();
    return (await client.messages.countTokens({ model, messages })).input_tokens;
  },
  wrong_key: () => refusal(() => new Anthropic({ apiKey: WRONG_KEY }).messages.create(body())),
  unknown_model: () => refusal(() => client.messages.create(body(QUESTION, { model: UNKNOWN_MODEL }))),
  async cancel() {
    const events = client.messages.stream(body(QUESTION, { max_tokens: LONG }));
    for await (const event of events) if (event.type === "content_block_delta") break;
    return secondsUntilIdle();
  },
});
