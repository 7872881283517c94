import { sentence } from "../lib/format";
import { t, tn } from "../lib/i18n.svelte";
import type { Message } from "../lib/types";

/** Why no text comes yet, and where in the line the answer is; null where nobody knows. */
export interface Wait {
  reason: string;
  /** The kind of reason, for a sentence in the reader's language; empty if it is another one. */
  code: string;
  /** All slots of the model's tree, or those that one user may have. */
  slots: number | null;
  position: number | null;
  /** When it starts, as estimated, in milliseconds on `performance.now()`. */
  startsAt: number | null;
}

export interface ShownMessage extends Message {
  waiting?: Wait | null;
  /** What it said when its reader let it go on. */
  resumedAt?: string;
  /** It was to go on and could not: it fills the model's context. */
  full?: boolean;
}

/** Takes over what the server says. A running answer never shows less than it did: the rest is on its way. */
export function update(shown: ShownMessage, message: Message): void {
  const { content, ...rest } = message;
  Object.assign(shown, rest);
  const behind = message.status === "streaming" && shown.content.startsWith(content);
  if (!behind && shown.content !== content) shown.content = content;
  if (message.status === "streaming") return;
  shown.waiting = null;
  shown.full = message.finish_reason === "length" && message.content === shown.resumedAt;
}

/** A place in a line: "1st", "2nd", "11th". */
export function ordinal(position: number, language: string): string {
  const category = new Intl.PluralRules(language, { type: "ordinal" }).select(position);
  const keys = { one: "wait.ordinal.one", two: "wait.ordinal.two", few: "wait.ordinal.few" } as const;
  const key = keys[category as keyof typeof keys] ?? "wait.ordinal.other";
  return t(key, { count: position.toLocaleString(language) });
}

/** Where in the line, and when it starts: what matters to the reader. Empty if nothing is known. */
export function placeWords(wait: Wait, model: string, secondsLeft: string | null, language: string): string {
  if (wait.position === null) return secondsLeft === null ? "" : t("wait.start", { time: secondsLeft });
  const place = ordinal(wait.position, language);
  if (secondsLeft === null) return t("wait.place", { place, model });
  return t("wait.placeAndStart", { place, model, time: secondsLeft });
}

/** Why it waits. */
export function reasonWords(wait: Wait, model: string): string {
  if (wait.code === "busy" && wait.slots) return tn("wait.busy", wait.slots);
  if (wait.code === "user_limit" && wait.slots) return tn("wait.userLimit", wait.slots);
  if (wait.code === "no_node") return t("wait.noNode", { model });
  if (wait.code === "paused") return t("wait.draining", { model });
  return sentence(wait.reason);
}

/** Tokens a second while it was written; null where that says nothing. */
export function tokensPerSecond(message: Message): number | null {
  if (message.completion_tokens < 2 || message.seconds <= 0) return null;
  return (message.completion_tokens - 1) / message.seconds;
}

/** Whether a message can go on where it ended. */
export function isUnfinished(message: Message): boolean {
  if (message.role !== "assistant") return false;
  return message.status === "stopped" || message.status === "failed" || (message.status === "done" && message.finish_reason === "length");
}

/** The message as it is shown already, with what is new in it; a message that is not shown yet, as it is. */
export function merged(known: ShownMessage | undefined, message: Message): ShownMessage {
  if (!known) return message;
  update(known, message);
  return known;
}
