import { t } from "../lib/i18n.svelte";

/** First questions that a model answers well. The packaged ones speak English alone. */
export function examplesFor(model: string | null): string[] {
  const name = model?.toLowerCase() ?? "";
  if (name.includes("smollm2")) return SMALL_INSTRUCT;
  if (name === "gemma-3-270m") return BASE;
  if (name === "echo") return ECHO;
  return [t("start.example1"), t("start.example2"), t("start.example3"), t("start.example4")];
}

const SMALL_INSTRUCT = [
  "Write a Python function that merges two sorted lists.",
  "Explain photosynthesis in two sentences.",
  "Give me three tips for sleeping better.",
  "What is the capital of France?",
];
/** A base model goes on with a text rather than answer a question. */
const BASE = ["The capital of France is", "Once upon a time there was a lighthouse keeper who"];
const ECHO = ["Say this again, word for word.", "One two three four five six seven eight nine ten"];
