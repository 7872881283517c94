import { parse, request } from "../lib/api";
import { connection } from "../lib/connection.svelte";

export interface Given {
  message: string;
  good: boolean;
  note: string;
}

const address = (conversation: string, message: string): string =>
  `/api/conversations/${encodeURIComponent(conversation)}/messages/${encodeURIComponent(message)}/feedback`;

/** What the reader thinks of the open conversation's answers. */
class Feedback {
  #conversation: string | null = null;
  given = $state<Record<string, Given>>({});

  /** Read what was given before, once a conversation. Offline nothing is asked. */
  async load(conversation: string): Promise<void> {
    if (conversation === this.#conversation || connection.offline) return;
    this.#conversation = conversation;
    this.given = {};
    const answer = await request("GET", `/api/feedback?conversation=${encodeURIComponent(conversation)}`);
    const { feedback } = parse(await answer.text()) as { feedback: Given[] };
    if (conversation !== this.#conversation) return;
    for (const each of feedback) this.given[each.message] ??= each;
  }

  async give(conversation: string, message: string, good: boolean, note: string): Promise<void> {
    await request("PUT", address(conversation, message), { body: { good, note } });
    this.given[message] = { message, good, note };
  }

  async withdraw(conversation: string, message: string): Promise<void> {
    await request("DELETE", address(conversation, message));
    delete this.given[message];
  }
}

export const feedback = new Feedback();
