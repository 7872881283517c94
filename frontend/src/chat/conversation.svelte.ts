import { ApiError, api, errorText, type Written } from "../lib/api";
import { events, withDelta, type ConversationHandler, type StartNotice, type TextDelta, type WaitingNotice } from "../lib/events";
import { t } from "../lib/i18n.svelte";
import { toasts } from "../lib/toasts.svelte";
import type { Attachment, Conversation, ConversationSummary, Message, Turn } from "../lib/types";
import { merged, update, type ShownMessage } from "./answer";
import { ConnectionState } from "./connection.svelte";
import { forgetDraft, type QueuedMessage } from "./drafts";
import { notifyOf, type Surroundings } from "./surroundings";
import { branchTo, comparisonAt, newestLeaf, versionsOf } from "./tree";

export type Loading = "loading" | "ready" | "failed";

interface Shown extends Omit<Conversation, "messages"> {
  messages: ShownMessage[];
}

/** What becomes of a message that the server did not take: its reader hears why, or there is no need. */
type Refusal = "report" | "shown" | "later" | "sent elsewhere";

/** An answer that was to stand beside another one, and why there is none. */
export interface RefusedAnswer {
  beside: string;
  model: string;
  problem: string;
}

/** The open conversation: its messages, what happens to them, and the only place that changes them. */
export class OpenConversation {
  current = $state<Shown | null>(null);
  state = $state<Loading>("ready");
  /** Why it cannot be shown. */
  problem = $state<string | null>(null);
  /** The next new conversation is not listed, and gone when its reader leaves it. */
  temporary = $state(false);
  /** A message is on its way to the server. */
  sending = $state(false);
  readonly #connection = new ConnectionState();
  #requested: string | null = null;
  /** Grows when a message is added, sent or ends, or when another branch is shown. */
  #revision = 0;
  /** Messages that the stream told of since the last request began. */
  #heard = new Set<string>();
  #unsubscribe: (() => void) | null = null;

  /** The branch that is shown, from its beginning on. */
  branch = $derived(this.current ? branchTo(this.current.messages, this.current.head) : []);
  /** The answers that are being written. */
  running = $derived(this.current?.messages.filter((message) => message.status === "streaming") ?? []);
  /** The two answers at the end of the branch that are compared. */
  comparison = $derived(comparisonAt(this.current?.messages ?? [], this.branch.at(-1)));
  /** The second answer that was refused, if it was. */
  refused = $state<RefusedAnswer | null>(null);
  /** The first message that the model still sees; null if it sees all. */
  seenFrom = $derived(this.current?.seen_from === this.branch[0]?.id ? null : (this.current?.seen_from ?? null));

  constructor(readonly surroundings: Surroundings) {}

  /** The connection broke while an answer is written; it is being opened again. */
  get reconnecting(): boolean {
    return this.#connection.reconnecting;
  }

  get id(): string | null {
    return this.current?.id ?? null;
  }

  /** Show a conversation (null: a new one). */
  async open(id: string | null): Promise<void> {
    this.#requested = id;
    if (this.id === id && this.state === "ready") return;
    this.#discardTemporary();
    this.close();
    this.current = null;
    this.problem = null;
    this.refused = null;
    this.state = id ? "loading" : "ready";
    if (id) await this.#load(id);
  }

  /** Read it again, after a failed load or when something was missed. What is shown stays meanwhile. */
  async reload(): Promise<void> {
    if (this.#requested) await this.#load(this.#requested);
  }

  /** Stop listening; running answers go on at the server. */
  close(): void {
    this.#unsubscribe?.();
    this.#unsubscribe = null;
    this.#connection.restored();
  }

  async #load(id: string): Promise<void> {
    try {
      const revision = this.#revision;
      const conversation = await api.conversation(id);
      if (this.#requested !== id) return;
      // What happened meanwhile may be missing in it.
      if (this.current?.id === id && revision !== this.#revision) return await this.#load(id);
      this.#show(conversation);
    } catch (error) {
      if (this.#requested !== id) return;
      if (this.current && !(error instanceof ApiError && error.status === 404)) return this.#report(error);
      const missing = error instanceof ApiError && error.status === 404;
      this.close();
      this.current = null;
      this.problem = missing ? t("chat.missing") : errorText(error);
      this.state = "failed";
    }
  }

  /** Messages that are shown already stay the same objects, so that nothing of them is drawn again. */
  #show(conversation: Conversation): void {
    if (this.current?.id !== conversation.id) {
      this.current = conversation;
    } else {
      const known = new Map(this.current.messages.map((message) => [message.id, message]));
      const { messages, ...rest } = conversation;
      Object.assign(this.current, rest);
      this.current.messages = messages.map((message) => merged(known.get(message.id), message));
    }
    this.state = "ready";
    this.#unsubscribe ??= events.subscribe(conversation.id, this.#handler());
  }

  #handler(): ConversationHandler {
    return {
      onReady: (version) => {
        this.#connection.restored();
        if (version !== this.current?.version) void this.reload();
      },
      onMessage: (message, seenFrom) => {
        this.#heard.add(message.id);
        this.#put(message);
        this.#sees(message, seenFrom);
      },
      onDelta: (delta) => this.#onDelta(delta),
      onWaiting: (notice) => this.#onWaiting(notice),
      onStart: (notice) => this.#onStart(notice),
      onEnd: (message, seenFrom) => this.#onEnd(message, seenFrom),
      onResync: () => void this.reload(),
      onDrop: () => this.#connection.dropped(),
    };
  }

  #message(id: string): ShownMessage | undefined {
    return this.current?.messages.findLast((message) => message.id === id);
  }

  /** A message that is new, whoever sent it, or has changed. The newest one's branch is the one that is shown. */
  #put(message: Message): void {
    this.#revision += 1;
    const known = this.#message(message.id);
    if (known) return update(known, message);
    if (!this.current) return;
    const place = this.current.messages.findIndex((other) => Number(other.id) > Number(message.id));
    this.current.messages.splice(place < 0 ? this.current.messages.length : place, 0, message);
    if (place < 0 && !message.beside) this.current.head = message.id;
  }

  #onDelta(delta: TextDelta): void {
    const message = this.#message(delta.message);
    if (!message) return;
    message.waiting = null;
    message.content = withDelta(message.content, delta);
  }

  #onWaiting({ message: id, reason, code, slots, position, seconds }: WaitingNotice): void {
    const message = this.#message(id);
    if (message?.status !== "streaming") return;
    const startsAt = seconds === null ? null : performance.now() + 1000 * seconds;
    message.waiting = { reason, code: code ?? "", slots: slots ?? null, position, startsAt };
  }

  #onStart({ message: id, node, trail }: StartNotice): void {
    const message = this.#message(id);
    if (!message) return;
    if (message.node && message.node !== node && message.content) message.moved += 1;
    message.node = node;
    message.trail = trail ?? [];
    message.waiting = null;
  }

  #onEnd(message: Message, seenFrom: string | null): void {
    this.#heard.add(message.id);
    this.#put(message);
    this.#sees(message, seenFrom);
    if (message.status === "done" && this.current) notifyOf(message, this.current);
  }

  /** What the model saw for the latest answer of the branch is what the page marks. */
  #sees(message: Message, seenFrom: string | null | undefined): void {
    if (seenFrom === undefined || message.status !== "done" || !this.current) return;
    if (this.branch.at(-1)?.id === message.id) this.current.seen_from = seenFrom;
  }

  /** The other tabs and devices of this user show that branch now. */
  onSummary(summary: ConversationSummary): void {
    if (this.current?.id !== summary.id) return;
    this.current.title = summary.title;
    if (!summary.head || summary.head === this.current.head) return;
    if (!this.#message(summary.head)) return;
    this.#revision += 1;
    this.current.head = summary.head;
  }

  /** Send a message after the branch that is shown; true when the server took it. On false, the caller keeps the text. */
  async send(content: string, attachments: Attachment[] = []): Promise<boolean> {
    const conversation = this.current;
    if (conversation) return this.#append(conversation, content, attachments, () => "report");
    const sent = await this.#sendFirst(content, attachments);
    if (sent) await this.#askSecond(this.branch.at(-1)?.id ?? null);
    return sent;
  }

  /** Send what waited for the running answer. Every tab tries, and one succeeds; true when it was sent, whoever did. */
  async sendQueued({ text, attachments, after }: QueuedMessage): Promise<boolean> {
    const conversation = this.current;
    if (!conversation) return false;
    if (after && this.#isFollowed(after, text)) return true; // another tab has sent it, and it is answered perhaps
    const { head } = conversation;
    return this.#append(conversation, text, attachments, (error) => (isConflict(error) ? this.#afterConflict(head, text) : "report"));
  }

  /** A message waited to follow `head`, and something follows that already. */
  #afterConflict(head: string | null, content: string): Refusal {
    if (this.#isFollowed(head, content)) return "sent elsewhere";
    return this.running.length > 0 ? "later" : "report";
  }

  #isFollowed(id: string | null, content: string): boolean {
    const place = this.branch.findIndex((message) => message.id === id);
    if (id !== null && place < 0) return false;
    const next = this.branch[place + 1];
    return next?.role === "user" && next.content === content;
  }

  async #append(conversation: Shown, content: string, attachments: Attachment[], onRefused: (error: unknown) => Refusal): Promise<boolean> {
    return this.#ask(async () => {
      const turn = await api.send(conversation.id, { ...this.#written(content, attachments), head: conversation.head });
      forgetDraft(conversation.id);
      return turn;
    }, onRefused);
  }

  /** A question, which the second model answers, too, where two are compared. */
  async #ask(request: (id: string) => Promise<Turn>, onRefused?: (error: unknown) => Refusal): Promise<boolean> {
    const asked = this.id;
    let answer: string | null = null;
    this.refused = null;
    const sent = await this.#begin(async (id) => {
      const turn = await request(id);
      answer = turn.assistant_message.id;
      return turn;
    }, onRefused);
    if (this.id === asked) await this.#askSecond(answer);
    return sent;
  }

  async #askSecond(answer: string | null): Promise<void> {
    const model = this.surroundings.secondModel();
    if (answer !== null && model !== null) await this.compare(answer, model);
  }

  /** Another version of a question, as a branch of its own. */
  async edit(message: ShownMessage, content: string, attachments: Attachment[]): Promise<boolean> {
    return this.#ask((id) => api.send(id, { ...this.#written(content, attachments), parent: message.parent }));
  }

  #written(content: string, attachments: Attachment[]): Written {
    const model = this.surroundings.model();
    return { content, attachments, ...(model ? { model } : {}) };
  }

  /** Another answer to the same question; `model`: null for the conversation's own. */
  async regenerate(message: ShownMessage, model: string | null = null): Promise<boolean> {
    return this.#begin((id) => api.regenerate(id, message.id, model, false));
  }

  /** Another model's answer beside this one. Where it is refused, that is said in its place. */
  async compare(answer: string, model: string): Promise<void> {
    this.refused = null;
    const showRefusal = (error: unknown): Refusal => {
      this.refused = { beside: answer, model, problem: errorText(error) };
      return "shown";
    };
    await this.#begin((id) => api.regenerate(id, answer, model, true), showRefusal);
  }

  /** Let an answer go on that was stopped, has failed or was cut. */
  async resume(message: ShownMessage): Promise<boolean> {
    message.resumedAt = message.content;
    return this.#begin((id) => api.continueAnswer(id, message.id));
  }

  /** `onRefused`: what becomes of it; a conversation that has changed elsewhere is read again before that. */
  async #begin(request: (id: string) => Promise<Turn>, onRefused: (error: unknown) => Refusal = () => "report"): Promise<boolean> {
    if (this.sending) return false;
    this.sending = true;
    this.#revision += 1;
    this.#heard.clear();
    try {
      const turn = await request(this.id ?? "");
      for (const message of [turn.user_message, turn.assistant_message]) {
        // What the stream said since is newer: a quick answer may have ended already.
        if (!this.#heard.has(message.id)) this.#put(message);
      }
      const answer = this.#message(turn.assistant_message.id);
      if (answer && this.current) this.current.head = answer.beside ?? answer.id;
      toasts.clear();
      return true;
    } catch (error) {
      if (isConflict(error)) await this.reload();
      const refusal = onRefused(error);
      if (refusal === "report") this.#report(error);
      return refusal === "sent elsewhere";
    } finally {
      this.sending = false;
    }
  }

  /** A new conversation with its first message: the server keeps both or neither. */
  async #sendFirst(content: string, attachments: Attachment[]): Promise<boolean> {
    if (this.sending) return false;
    this.sending = true;
    try {
      const preset = this.surroundings.preset();
      const how = { temporary: this.temporary, preset: preset === null ? null : Number(preset) };
      const created = await api.createConversation({ ...this.#written(content, attachments), ...how });
      forgetDraft(null);
      this.temporary = false;
      this.close(); // another conversation may have been opened meanwhile
      this.#requested = created.id;
      this.#show(created);
      this.surroundings.created(created);
      toasts.clear();
      return true;
    } catch (error) {
      this.#report(error);
      return false;
    } finally {
      this.sending = false;
    }
  }

  /** A temporary conversation goes with its reader; if that fails, the server removes it a day later. */
  #discardTemporary(): void {
    if (this.current?.temporary) void api.deleteConversation(this.current.id).catch(() => {});
  }

  /** Stop answers that are being written, or all of them; what they have so far stays. */
  async stop(answers: ShownMessage[] = this.running): Promise<void> {
    const id = this.id;
    if (!id) return;
    try {
      const stopped = [...answers];
      await Promise.all(stopped.map((message) => api.stop(id, message.id)));
      for (const message of stopped) {
        if (message.status === "streaming") message.status = "stopped";
        message.waiting = null;
      }
    } catch (error) {
      this.#report(error);
    }
  }

  versions(message: ShownMessage): ShownMessage[] {
    return this.current ? versionsOf(this.current.messages, message) : [message];
  }

  /** Show the branch of another version of a message, here and on every other device. */
  async switchTo(message: ShownMessage): Promise<void> {
    const conversation = this.current;
    if (!conversation) return;
    const before = conversation.head;
    const head = newestLeaf(conversation.messages, message.id);
    this.#revision += 1;
    conversation.head = head;
    // A choice ends the comparison.
    const compared = this.versions(message).filter(({ beside }) => beside);
    const left = compared[0]?.beside ?? null;
    for (const version of compared) version.beside = null;
    this.refused = null;
    try {
      const { seen_from } = await api.updateConversation(conversation.id, { head });
      this.#revision += 1;
      if (conversation.head === head) conversation.seen_from = seen_from;
    } catch (error) {
      conversation.head = before;
      for (const version of compared) version.beside = left;
      this.#report(error);
    }
  }

  /** Errors that the login page explains by itself need no second line. */
  #report(error: unknown): void {
    if (error instanceof ApiError && error.status === 401) return;
    toasts.show(errorText(error));
  }
}

function isConflict(error: unknown): boolean {
  return error instanceof ApiError && error.status === 409;
}
