import { ApiError } from "../lib/api";
import type { ImportedConversation } from "./formats";

/** A request's body may have 1,000,000 bytes. */
export const MOST_BYTES = 900_000;
export const MOST_CONVERSATIONS = 50;

export interface Received {
  conversations: number;
  messages: number;
  known: number;
}

/** What came in, and what was left out for which reason. */
export interface Report extends Received {
  tooLarge: number;
  empty: number;
  refused: number;
  /** The last refusal in the server's words. */
  refusal: string | null;
}

type Send = (conversations: ImportedConversation[]) => Promise<Received>;

const size = (conversation: ImportedConversation): number => new TextEncoder().encode(JSON.stringify(conversation)).length;

/** Conversations in parts that fit into a request each. */
export function* partsOf(conversations: ImportedConversation[]): Generator<ImportedConversation[]> {
  let part: ImportedConversation[] = [];
  let bytes = 0;
  for (const conversation of conversations) {
    const more = size(conversation);
    if (part.length && (bytes + more > MOST_BYTES || part.length >= MOST_CONVERSATIONS)) {
      yield part;
      part = [];
      bytes = 0;
    }
    part.push(conversation);
    bytes += more;
  }
  if (part.length) yield part;
}

/** Send all conversations; `progress` hears how many are done. Throws ApiError where nothing answers. */
export async function upload(conversations: ImportedConversation[], send: Send, progress: (done: number) => void): Promise<Report> {
  const report: Report = { conversations: 0, messages: 0, known: 0, tooLarge: 0, empty: 0, refused: 0, refusal: null };
  const filled = conversations.filter((conversation) => conversation.messages.length);
  const sendable = filled.filter((conversation) => size(conversation) <= MOST_BYTES);
  report.empty = conversations.length - filled.length;
  report.tooLarge = filled.length - sendable.length;
  let done = 0;
  for (const part of partsOf(sendable)) {
    await sendPart(part, send, report);
    done += part.length;
    progress(done);
  }
  return report;
}

/** One part; if the server refuses it, each of its conversations alone, so that one does not keep out the others. */
async function sendPart(part: ImportedConversation[], send: Send, report: Report): Promise<void> {
  try {
    const received = await send(part);
    report.conversations += received.conversations;
    report.messages += received.messages;
    report.known += received.known;
  } catch (error) {
    if (!(error instanceof ApiError) || (error.status !== 400 && error.status !== 413)) throw error;
    if (part.length === 1) {
      report.refused += 1;
      report.refusal = error.message;
      return;
    }
    for (const conversation of part) await sendPart([conversation], send, report);
  }
}
