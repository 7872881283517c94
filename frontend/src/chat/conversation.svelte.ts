import { ApiError, api, errorText, type Written } from "../lib/api";
import { events, type ConversationHandler } from "../lib/events";
import { t } from "../lib/i18n.svelte";
import { toasts } from "../lib/toasts.svelte";
import type { Attachment, Conversation, ConversationSummary, Turn } from "../lib/types";
import type { ShownMessage } from "./answer";
import { ConnectionState } from "./connection.svelte";
import { forgetDraft, type QueuedMessage } from "./drafts";
import { notifyOf, type Surroundings } from "./surroundings";
import { Transcript, type Shown } from "./transcript.svelte";
import { newestLeaf } from "./tree";

export type Loading = "loading" | "ready" | "failed";

/** What becomes of a message that the server did not take: its reader hears why, or there is no need. */
type Refusal = "report" | "shown" | "later" | "sent elsewhere";

/** An answer that was to stand beside another one, and why there is none. */
export interface RefusedAnswer {
  beside: string;
  model: string;
  problem: string;
}

/**
 * The open conversation: its messages, what happens to them, and the only place that changes them.
 *
 * Every request may end after its reader has gone on to another conversation: its result is that of the one it was
 * made for, and touches nothing that is shown by then.
 */
export class OpenConversation {
  state = $state<Loading>("ready");
  /** Why it cannot be shown. */
  problem = $state<string | null>(null);
  /** The next new conversation is not listed, and gone when its reader leaves it. */
  temporary = $state(false);
  /** A message is on its way to the server. */
  sending = $state(false);
  /** The second answer that was refused, if it was. */
  refused = $state<RefusedAnswer | null>(null);
  readonly #transcript = new Transcript();
  readonly #connection = new ConnectionState();
  #requested: string | null = null;
  #unsubscribe: (() => void) | null = null;

  constructor(readonly surroundings: Surroundings) {}

  get current(): Shown | null {
    return this.#transcript.current;
  }

  /** See `Transcript`. */
  get branch(): ShownMessage[] {
    return this.#transcript.branch;
  }

  get running(): ShownMessage[] {
    return this.#transcript.running;
  }

  get comparison(): Transcript["comparison"] {
    return this.#transcript.comparison;
  }

  get seenFrom(): string | null {
    return this.#transcript.seenFrom;
  }

  /** The connection broke while an answer is written; it is being opened again. */
  get reconnecting(): boolean {
    return this.#connection.reconnecting;
  }

  get id(): string | null {
    return this.current?.id ?? null;
  }

  versions(message: ShownMessage): ShownMessage[] {
    return this.#transcript.versions(message);
  }

  // ---- opening and following

  /** Show a conversation (null: a new one). */
  async open(id: string | null): Promise<void> {
    this.#requested = id;
    if (this.id === id && this.state === "ready") return;
    if (this.current?.temporary) discard(this.current.id);
    this.close();
    this.#transcript.current = null;
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
      const { revision } = this.#transcript;
      const conversation = await api.conversation(id);
      if (this.#requested !== id) return;
      // What happened meanwhile may be missing in it.
      if (this.id === id && revision !== this.#transcript.revision) return await this.#load(id);
      this.#show(conversation);
    } catch (error) {
      if (this.#requested === id) this.#failedToLoad(error);
    }
  }

  #failedToLoad(error: unknown): void {
    const missing = error instanceof ApiError && error.status === 404;
    if (this.current && !missing) return report(error);
    this.close();
    this.#transcript.current = null;
    this.problem = missing ? t("chat.missing") : errorText(error);
    this.state = "failed";
  }

  #show(conversation: Conversation): void {
    this.#transcript.show(conversation);
    this.state = "ready";
    this.#unsubscribe ??= events.subscribe(conversation.id, this.#handler());
  }

  #handler(): ConversationHandler {
    const transcript = this.#transcript;
    return {
      onReady: (version) => {
        this.#connection.restored();
        if (version !== this.current?.version) void this.reload();
      },
      onMessage: (message, seenFrom) => transcript.onMessage(message, seenFrom),
      onDelta: (delta) => transcript.onDelta(delta),
      onWaiting: (notice) => transcript.onWaiting(notice),
      onStart: (notice) => transcript.onStart(notice),
      onEnd: (message, seenFrom) => {
        transcript.onMessage(message, seenFrom);
        if (message.status === "done" && this.current) notifyOf(message, this.current);
      },
      onResync: () => void this.reload(),
      onDrop: () => this.#connection.dropped(),
    };
  }

  /** The other tabs and devices of this user show that branch now. */
  onSummary(summary: ConversationSummary): void {
    this.#transcript.onSummary(summary);
  }

  // ---- questions and answers

  /** Send a message after the branch that is shown; true when the server took it. On false, the caller keeps the text. */
  async send(content: string, attachments: Attachment[] = []): Promise<boolean> {
    const conversation = this.current;
    if (!conversation) return this.#sendFirst(content, attachments);
    return this.#ask(async (id) => {
      const turn = await this.#append(conversation, content, attachments);
      forgetDraft(id);
      return turn;
    });
  }

  /** Whether that message is followed by this question already. */
  isFollowed(id: string | null, content: string): boolean {
    return this.#transcript.isFollowed(id, content);
  }

  /** Send what waited for the running answer. Every tab tries, and one succeeds; true when it was sent, whoever did. */
  async sendQueued({ text, attachments, after }: QueuedMessage): Promise<boolean> {
    const conversation = this.current;
    if (!conversation) return false;
    // Another tab has sent it, and it is answered perhaps.
    if (after && this.isFollowed(after, text)) return true;
    const { head } = conversation;
    const onRefused = (error: unknown): Refusal => (isConflict(error) ? this.#afterConflict(head, text) : "report");
    return this.#ask(() => this.#append(conversation, text, attachments), onRefused);
  }

  /** A message waited to follow `head`, and something follows that already. */
  #afterConflict(head: string | null, content: string): Refusal {
    if (this.isFollowed(head, content)) return "sent elsewhere";
    return this.running.length > 0 ? "later" : "report";
  }

  #append({ id, head }: Shown, content: string, attachments: Attachment[]): Promise<Turn> {
    return api.send(id, { ...this.#written(content, attachments), head });
  }

  /** A question, which the second model answers, too, where two are compared. */
  async #ask(request: (id: string) => Promise<Turn>, onRefused?: (error: unknown) => Refusal): Promise<boolean> {
    const conversation = this.id;
    const second = this.surroundings.secondModel();
    let answer: string | null = null;
    this.refused = null;
    const sent = await this.#begin(
      async (id) => {
        const turn = await request(id);
        answer = turn.assistant_message.id;
        return turn;
      },
      onRefused,
    );
    if (answer !== null && second !== null) await this.compare(answer, second, conversation);
    return sent;
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
  async compare(answer: string, model: string, conversation: string | null = this.id): Promise<void> {
    if (this.id === conversation) this.refused = null;
    const showRefusal = (error: unknown): Refusal => {
      this.refused = { beside: answer, model, problem: errorText(error) };
      return "shown";
    };
    await this.#begin((id) => api.regenerate(id, answer, model, true), showRefusal, conversation);
  }

  /** Let an answer go on that was stopped, has failed or was cut. */
  async resume(message: ShownMessage): Promise<boolean> {
    message.resumedAt = message.content;
    return this.#begin((id) => api.continueAnswer(id, message.id));
  }

  /** `onRefused`: what becomes of it; a conversation that has changed elsewhere is read again before that. */
  async #begin(
    request: (id: string) => Promise<Turn>,
    onRefused: (error: unknown) => Refusal = () => "report",
    conversation: string | null = this.id,
  ): Promise<boolean> {
    if (this.sending) return false;
    this.sending = true;
    this.#transcript.requestBegins();
    try {
      const turn = await request(conversation ?? "");
      if (this.id !== conversation) return true;
      this.#transcript.addTurn(turn);
      toasts.clear();
      return true;
    } catch (error) {
      if (isConflict(error) && this.id === conversation) await this.reload();
      const refusal = this.id === conversation ? onRefused(error) : "report";
      if (refusal === "report") report(error);
      return refusal === "sent elsewhere";
    } finally {
      this.sending = false;
    }
  }

  /** A new conversation with its first message: the server keeps both or neither. */
  async #sendFirst(content: string, attachments: Attachment[]): Promise<boolean> {
    if (this.sending) return false;
    this.sending = true;
    const second = this.surroundings.secondModel();
    let created: Conversation;
    try {
      const preset = this.surroundings.preset();
      const how = { temporary: this.temporary, preset: preset === null ? null : Number(preset) };
      created = await api.createConversation({ ...this.#written(content, attachments), ...how });
      this.#showCreated(created, second);
    } catch (error) {
      report(error);
      return false;
    } finally {
      this.sending = false;
    }
    const answer = created.messages.at(-1);
    if (second !== null && answer && !this.#isLeft(created)) await this.compare(answer.id, second, created.id);
    return true;
  }

  /** Its reader may have opened another conversation meanwhile: that one stays open. */
  #showCreated(created: Conversation, second: string | null): void {
    forgetDraft(null);
    this.temporary = false;
    const isAwaited = this.#requested === null;
    if (isAwaited) {
      this.#requested = created.id;
      this.#show(created);
      toasts.clear();
    }
    if (this.#isLeft(created)) discard(created.id);
    this.surroundings.created(created, second, isAwaited);
  }

  /** A temporary conversation whose reader has gone on. */
  #isLeft({ id, temporary }: Conversation): boolean {
    return temporary && this.#requested !== id;
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
      report(error);
    }
  }

  /** Show the branch of another version of a message, here and on every other device. */
  async switchTo(message: ShownMessage): Promise<void> {
    const conversation = this.current;
    if (!conversation) return;
    const before = conversation.head;
    const head = newestLeaf(conversation.messages, message.id);
    this.#transcript.revision += 1;
    conversation.head = head;
    // A choice ends the comparison.
    const compared = this.versions(message).filter(({ beside }) => beside);
    const left = compared[0]?.beside ?? null;
    for (const version of compared) version.beside = null;
    this.refused = null;
    try {
      const { seen_from } = await api.updateConversation(conversation.id, { head });
      this.#transcript.revision += 1;
      if (conversation.head === head) conversation.seen_from = seen_from;
    } catch (error) {
      if (conversation.head === head) conversation.head = before;
      for (const version of compared) version.beside = left;
      report(error);
    }
  }
}

/** A temporary conversation goes with its reader; if that fails, the server removes it a day later. */
function discard(id: string): void {
  void api.deleteConversation(id).catch(() => {});
}

/** Errors that the login page explains by itself need no second line. */
function report(error: unknown): void {
  if (error instanceof ApiError && error.status === 401) return;
  toasts.show(errorText(error));
}

function isConflict(error: unknown): boolean {
  return error instanceof ApiError && error.status === 409;
}
