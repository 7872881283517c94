import { parse } from "../lib/api";
import { roughly, sentence } from "../lib/format";
import type { ServerEvent } from "../lib/sse";
import type { Message } from "../lib/types";

/** Why no text comes yet, and where in the line the answer is; null where nobody knows. */
export interface Wait {
  reason: string;
  position: number | null;
  /** Until it starts, as estimated. */
  seconds: number | null;
}

export interface ShownMessage extends Message {
  waiting?: Wait | null;
  /** Of an answer that ended while this page was open: the first message that the model saw; null if it saw all. */
  seen_from?: string | null;
}

/** Where the model's view of a conversation begins; null at its first message. */
export function seenFrom(conversation: { messages: ShownMessage[]; seen_from: string | null }): string | null {
  const latest = conversation.messages.findLast((message) => message.seen_from !== undefined);
  const id = latest?.seen_from !== undefined ? latest.seen_from : conversation.seen_from;
  return id === conversation.messages[0]?.id ? null : id;
}

/** A wait in words: what matters to the reader, and the reason if that is something else. */
export function waitWords({ reason, position, seconds }: Wait): { text: string; detail: string | null } {
  const place = position === null ? "" : `number ${position} in line`;
  const start = seconds === null ? "" : `starts in about ${roughly(seconds)}`;
  const known = [place, start].filter(Boolean).join(", ");
  return known ? { text: sentence(known), detail: sentence(reason) } : { text: sentence(reason), detail: null };
}

/** Finish reasons that mean: somebody stopped it. ("stop" is the model's own, natural end.) */
const STOPPED = new Set(["cancelled", "canceled", "stopped", "aborted"]);

function field(data: unknown, name: string): string | null {
  const value = (data as Record<string, unknown> | null)?.[name];
  return typeof value === "string" ? value : null;
}

function amount(data: unknown, name: string): number | null {
  const value = (data as Record<string, unknown> | null)?.[name];
  return typeof value === "number" ? value : null;
}

/**
 * Takes the events of one connection to an answer's stream and changes the message accordingly.
 * A connection tells the text from its beginning. After a restart the server may have less of it than is shown, and
 * writes the same again: what is shown stays until it is caught up with.
 * The returned function says false when the answer has ended.
 */
export function answerEvents(message: ShownMessage): (event: ServerEvent) => boolean {
  let text: string | null = null;
  const end = (): void => {
    message.waiting = null;
    message.content = text ?? message.content;
  };
  return ({ event, data }) => {
    const value = parse(data);
    switch (event) {
      case "waiting":
        message.waiting = {
          reason: field(value, "reason") ?? "waiting for a free place",
          position: amount(value, "position"),
          seconds: amount(value, "seconds"),
        };
        return true;
      case "delta":
        message.waiting = null;
        text = (text ?? "") + (field(value, "text") ?? "");
        if (!message.content.startsWith(text)) message.content = text;
        return true;
      case "done":
        end();
        message.finish_reason = field(value, "finish_reason");
        message.status = STOPPED.has(message.finish_reason ?? "") ? "stopped" : "done";
        if (message.status === "done") message.seen_from = field(value, "seen_from");
        return false;
      case "failed":
        end();
        message.error = field(value, "message");
        message.status = "failed";
        return false;
      default:
        return true;
    }
  };
}
