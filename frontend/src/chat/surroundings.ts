import { notify } from "../lib/offline";
import type { Conversation, ConversationSummary, Message } from "../lib/types";

/** What the open conversation's surroundings do. */
export interface Surroundings {
  /** The model that answers next. */
  model(): string | null;
  /** The model whose answer stands beside; null: none does. */
  secondModel(): string | null;
  /** The preset that a new conversation begins with; null for none. */
  preset(): string | null;
  /**
   * A conversation was created here, to be compared with `second`; `shown`: its address is shown from now on. False where
   * its reader has opened another one meanwhile.
   */
  created(conversation: Conversation, second: string | null, shown: boolean): void;
}

/** Nobody turns to another tab for less. */
const LONG_MS = 10_000;
const NOTIFIED_CHARACTERS = 140;

/** A reader who looks elsewhere is told of an answer that took long. */
export function notifyOf(answer: Message, { id, title }: ConversationSummary): void {
  if (Date.now() - Date.parse(answer.created) < LONG_MS) return;
  void notify(title, answer.content.replace(/\s+/g, " ").slice(0, NOTIFIED_CHARACTERS), `/c/${id}`);
}
