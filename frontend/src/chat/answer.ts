import { sentence } from "../lib/format";
import type { ServerEvent } from "../lib/sse";
import type { Message } from "../lib/types";

/** A message as shown: `waiting` says why no text comes yet. */
export interface ShownMessage extends Message {
  waiting?: string | null;
}

/** Finish reasons that mean: somebody stopped it. ("stop" is the model's own, natural end.) */
const STOPPED = new Set(["cancelled", "canceled", "stopped", "aborted"]);

function field(data: unknown, name: string): string | null {
  const value = (data as Record<string, unknown> | null)?.[name];
  return typeof value === "string" ? value : null;
}

/**
 * Takes the events of one connection to an answer's stream and changes the message accordingly.
 * The first delta of a connection carries all the text so far, so it replaces what is shown.
 * The returned function says false when the answer has ended.
 */
export function answerEvents(message: ShownMessage): (event: ServerEvent) => boolean {
  let first = true;
  return ({ event, data }) => {
    const value: unknown = JSON.parse(data);
    switch (event) {
      case "waiting":
        message.waiting = sentence(field(value, "reason") ?? "waiting for a free place");
        return true;
      case "delta":
        message.waiting = null;
        message.content = first ? (field(value, "text") ?? "") : message.content + (field(value, "text") ?? "");
        first = false;
        return true;
      case "done":
        message.waiting = null;
        message.finish_reason = field(value, "finish_reason");
        message.status = STOPPED.has(message.finish_reason ?? "") ? "stopped" : "done";
        return false;
      case "failed":
        message.waiting = null;
        message.error = field(value, "message");
        message.status = "failed";
        return false;
      default:
        return true;
    }
  };
}
