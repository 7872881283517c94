import { withDelta, type StartNotice, type TextDelta, type WaitingNotice } from "../lib/events";
import type { Conversation, ConversationSummary, Message, Turn } from "../lib/types";
import { merged, update, type ShownMessage } from "./answer";
import { branchTo, comparisonAt, versionsOf } from "./tree";

export interface Shown extends Omit<Conversation, "messages"> {
  messages: ShownMessage[];
}

/** The messages that are shown, and what the server says of them: responses, and the stream beside them. */
export class Transcript {
  current = $state<Shown | null>(null);
  /** Grows when a message is added, sent or ends, or when another branch is shown. */
  revision = 0;
  /** Messages that the stream told of since the last request began. */
  #heard = new Set<string>();

  /** The branch that is shown, from its beginning on. */
  branch = $derived(this.current ? branchTo(this.current.messages, this.current.head) : []);
  /** The answers that are being written. */
  running = $derived(this.current?.messages.filter((message) => message.status === "streaming") ?? []);
  /** The two answers at the end of the branch that are compared. */
  comparison = $derived(comparisonAt(this.current?.messages ?? [], this.branch.at(-1)));
  /** The first message that the model still sees; null if it sees all. */
  seenFrom = $derived(this.current?.seen_from === this.branch[0]?.id ? null : (this.current?.seen_from ?? null));

  /** Messages that are shown already stay the same objects, so that nothing of them is drawn again. */
  show(conversation: Conversation): void {
    if (this.current?.id !== conversation.id) {
      this.current = conversation;
      return;
    }
    const known = new Map(this.current.messages.map((message) => [message.id, message]));
    const { messages, ...rest } = conversation;
    Object.assign(this.current, rest);
    this.current.messages = messages.map((message) => merged(known.get(message.id), message));
  }

  message(id: string): ShownMessage | undefined {
    return this.current?.messages.findLast((message) => message.id === id);
  }

  versions(message: ShownMessage): ShownMessage[] {
    return this.current ? versionsOf(this.current.messages, message) : [message];
  }

  /** Whether the message after that one is this question. */
  isFollowed(id: string | null, content: string): boolean {
    const place = this.branch.findIndex((message) => message.id === id);
    if (id !== null && place < 0) return false;
    const next = this.branch[place + 1];
    return next?.role === "user" && next.content === content;
  }

  // ---- a request, and its response

  requestBegins(): void {
    this.revision += 1;
    this.#heard.clear();
  }

  /** What the stream said since the request began is newer: a quick answer may have ended already. */
  addTurn(turn: Turn): void {
    for (const message of [turn.user_message, turn.assistant_message]) {
      if (!this.#heard.has(message.id)) this.#put(message);
    }
    const answer = this.message(turn.assistant_message.id);
    if (answer && this.current) this.current.head = answer.beside ?? answer.id;
  }

  // ---- the stream

  onMessage(message: Message, seenFrom?: string | null): void {
    this.#heard.add(message.id);
    this.#put(message);
    this.#sees(message, seenFrom);
  }

  onDelta(delta: TextDelta): void {
    const message = this.message(delta.message);
    if (!message) return;
    message.waiting = null;
    message.content = withDelta(message.content, delta);
  }

  onWaiting({ message: id, reason, code, slots, position, seconds }: WaitingNotice): void {
    const message = this.message(id);
    if (message?.status !== "streaming") return;
    const startsAt = seconds === null ? null : performance.now() + 1000 * seconds;
    message.waiting = { reason, code: code ?? "", slots: slots ?? null, position, startsAt };
  }

  onStart({ message: id, node, trail }: StartNotice): void {
    const message = this.message(id);
    if (!message) return;
    if (message.node && message.node !== node && message.content) message.moved += 1;
    message.node = node;
    message.trail = trail ?? [];
    message.waiting = null;
  }

  /** The other tabs and devices of this user show that branch now. */
  onSummary(summary: ConversationSummary): void {
    if (this.current?.id !== summary.id) return;
    this.current.title = summary.title;
    if (!summary.head || summary.head === this.current.head) return;
    if (!this.message(summary.head)) return;
    this.revision += 1;
    this.current.head = summary.head;
  }

  /** A message that is new, whoever sent it, or has changed. The newest one's branch is the one that is shown. */
  #put(message: Message): void {
    this.revision += 1;
    const known = this.message(message.id);
    if (known) return update(known, message);
    if (!this.current) return;
    const place = this.current.messages.findIndex((other) => Number(other.id) > Number(message.id));
    this.current.messages.splice(place < 0 ? this.current.messages.length : place, 0, message);
    if (place < 0 && !message.beside) this.current.head = message.id;
  }

  /** What the model saw for the latest answer of the branch is what the page marks. */
  #sees(message: Message, seenFrom: string | null | undefined): void {
    if (seenFrom === undefined || message.status !== "done" || !this.current) return;
    if (this.branch.at(-1)?.id === message.id) this.current.seen_from = seenFrom;
  }
}
