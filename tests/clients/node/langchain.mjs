// LangChain's ChatOpenAI and OpenAIEmbeddings for Node.js.

import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { z } from "zod";
import { ASK_WEATHER, EMBEDDER, LONG, MODEL, QUESTION, UNKNOWN_MODEL, WRONG_KEY, main, refusal, secondsUntilIdle } from "./facts.mjs";

const llm = new ChatOpenAI({ model: MODEL });
const Person = z.object({ name: z.string(), age: z.int() });
const weather = tool(async () => "rain", {
  name: "weather",
  description: "The weather in a city",
  schema: z.object({ city: z.string() }),
});

await main({
  async chat() {
    return (await llm.invoke(QUESTION)).content;
  },
  async stream() {
    const pieces = [];
    for await (const chunk of await llm.stream(QUESTION)) pieces.push(chunk.content);
    return pieces;
  },
  async tools() {
    const bound = llm.bindTools([weather]);
    const messages = [{ role: "user", content: ASK_WEATHER }];
    const answer = await bound.invoke(messages);
    const [call] = answer.tool_calls;
    const final = await bound.invoke([...messages, answer, await weather.invoke(call)]);
    return { name: call.name, arguments: call.args, text: final.content };
  },
  async forced_tool() {
    const bound = llm.bindTools([weather], { tool_choice: "any" });
    const [call] = (await bound.invoke(ASK_WEATHER)).tool_calls;
    return { name: call.name, arguments: call.args };
  },
  async structured() {
    return llm.withStructuredOutput(Person).invoke("Ada is 36.");
  },
  async responses() {
    const answer = await new ChatOpenAI({ model: MODEL, useResponsesApi: true }).invoke(QUESTION);
    return { text: answer.text, status: answer.response_metadata.status };
  },
  async embeddings() {
    const vectors = await new OpenAIEmbeddings({ model: EMBEDDER }).embedDocuments(["a tree", "a forest"]);
    return vectors.map((vector) => vector.length);
  },
  wrong_key: () => refusal(() => new ChatOpenAI({ model: MODEL, apiKey: WRONG_KEY }).invoke(QUESTION)),
  unknown_model: () => refusal(() => new ChatOpenAI({ model: UNKNOWN_MODEL }).invoke(QUESTION)),
  async cancel() {
    const chunks = await new ChatOpenAI({ model: MODEL, maxTokens: LONG }).stream(QUESTION);
    for await (const chunk of chunks) if (chunk.content) break;
    return secondsUntilIdle();
  },
});
