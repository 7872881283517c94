import type { Conversation, Message, Turn } from "../src/lib/types";

export const message = (id: number, parent: number | null, fields: Partial<Message> = {}): Message => ({
  id: String(id),
  parent: parent === null ? null : String(parent),
  role: id % 2 === 1 ? "user" : "assistant",
  content: `text ${id}`,
  status: "done",
  error: null,
  error_code: "",
  created: "2026-01-01T00:00:00Z",
  finish_reason: null,
  model: "tiny",
  node: "",
  prompt_tokens: 0,
  completion_tokens: 0,
  ttft_ms: null,
  seconds: 0,
  moved: 0,
  trail: [],
  ...fields,
});

export function conversation(messages: Message[], fields: Partial<Conversation> = {}): Conversation {
  const head = messages.at(-1)?.id ?? null;
  const kept = { pinned: false, archived: false, folder: "", running: false, temporary: false };
  return { ...kept, id: "7", title: "t", model: "tiny", updated: "", head, seen_from: null, version: "v1", messages, ...fields };
}

export const turn = (question: Message, answer: Message): Turn => ({ user_message: question, assistant_message: answer });
