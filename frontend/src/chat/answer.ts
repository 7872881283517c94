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
    const value: unknown = JSON.parse(data);
    switch (event) {
      case "waiting":
        message.waiting = sentence(field(value, "reason") ?? "waiting for a free place");
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
