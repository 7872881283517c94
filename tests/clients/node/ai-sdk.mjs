// Vercel's AI SDK with three providers: openai (its default is /v1/responses), openai-compatible, anthropic.

import { createAnthropic } from "@ai-sdk/anthropic";
import { openai } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, embedMany, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { ASK_WEATHER, EMBEDDER, LONG, MODEL, QUESTION, UNKNOWN_MODEL, main, refusal, secondsUntilIdle } from "./facts.mjs";

const compatible = createOpenAICompatible({
  name: "canopy",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
  supportsStructuredOutputs: true, // else it sends no schema, to no server
});
// its address ends in /v1, unlike that of Anthropic's own library
const anthropic = createAnthropic({ baseURL: process.env.OPENAI_BASE_URL });
const MOST = { anthropic: 64 }; // tokens, as its answers need a limit
const PROVIDERS = {
  openai: openai(MODEL),
  chat: openai.chat(MODEL),
  compatible: compatible(MODEL),
  anthropic: anthropic(MODEL),
};
const Person = z.object({ name: z.string(), age: z.int() });
const weather = tool({
  description: "The weather in a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async () => "rain",
});

async function chat(model, maxOutputTokens) {
  return (await generateText({ model, prompt: QUESTION, maxOutputTokens })).text;
}

async function stream(model, maxOutputTokens) {
  const pieces = [];
  let problem;
  const result = streamText({ model, prompt: QUESTION, maxOutputTokens, onError: ({ error }) => (problem = error) });
  for await (const piece of result.textStream) pieces.push(piece);
  if (problem) throw problem;
  return pieces;
}

async function tools(model) {
  const prompt = ASK_WEATHER;
  const result = await generateText({ model, prompt, tools: { weather }, stopWhen: stepCountIs(3) });
  const call = result.steps[0].toolCalls[0];
  return { name: call.toolName, arguments: call.input, text: result.text };
}

async function forcedTool(model) {
  const prompt = ASK_WEATHER;
  const result = await generateText({ model, prompt, tools: { weather }, toolChoice: "required" });
  const call = result.steps[0].toolCalls[0];
  return { name: call.toolName, arguments: call.input };
}

async function structured(model) {
  const output = Output.object({ schema: Person });
  return (await generateText({ model, prompt: "Ada is 36.", output })).output;
}

async function cancel(model) {
  const leave = new AbortController();
  const result = streamText({ model, prompt: QUESTION, maxOutputTokens: LONG, abortSignal: leave.signal });
  for await (const piece of result.textStream) {
    if (piece) break;
  }
  leave.abort();
  return secondsUntilIdle();
}

const checks = {
  async embeddings() {
    const model = compatible.textEmbeddingModel(EMBEDDER);
    return (await embedMany({ model, values: ["a tree", "a forest"] })).embeddings.map((each) => each.length);
  },
  unknown_model: () => refusal(() => chat(compatible(UNKNOWN_MODEL))),
};
for (const [provider, model] of Object.entries(PROVIDERS)) {
  checks[`${provider}_chat`] = () => chat(model, MOST[provider]);
  checks[`${provider}_stream`] = () => stream(model, MOST[provider]);
  checks[`${provider}_tools`] = () => tools(model);
  checks[`${provider}_forced_tool`] = () => forcedTool(model);
  checks[`${provider}_structured`] = () => structured(model);
  checks[`${provider}_cancel`] = () => cancel(model);
}
await main(checks);
