import { ApiError, parse } from "./api";
import { follow, type ServerEvent } from "./sse";
import type { ConversationSummary, Hop, Message } from "./types";

/** Text of a running answer: it stands from `offset` (in UTF-16 units, like a string's index) on. */
export interface TextDelta {
  message: string;
  offset: number;
  text: string;
}

export interface WaitingNotice {
  message: string;
  reason: string;
  /** The kind of reason, and the number of slots that it is about. */
  code?: string;
  slots?: number | null;
  position: number | null;
  seconds: number | null;
}

export interface StartNotice {
  message: string;
  node: string;
  trail?: Hop[];
}

/** What happens in the open conversation. Each is optional, except what nobody may miss. */
export interface ConversationHandler {
  /** A connection stands. `version` other than that of the conversation shown: it changed meanwhile, load it again. */
  onReady(version: string): void;
  /** A new message, or one that changed. `seenFrom` of an answer that has ended, as in `onEnd`. */
  onMessage(message: Message, seenFrom?: string | null): void;
  onDelta(delta: TextDelta): void;
  onWaiting(notice: WaitingNotice): void;
  /** A node answers now. */
  onStart?(notice: StartNotice): void;
  /** A running answer ended; `message` is the whole of it. */
  onEnd(message: Message, seenFrom: string | null): void;
  /** Something was missed: load it again. */
  onResync(): void;
  /** The connection broke, and is being opened again; `onReady` follows. */
  onDrop?(): void;
}

export type ListChange =
  | { change: "created" | "updated"; conversation: ConversationSummary }
  | { change: "deleted"; conversation: { id: string } }
  /** So many changed, or something may have been missed: load the list again. */
  | { change: "reset"; conversation: null };

type Timer = ReturnType<typeof setTimeout>;

/** The server sends something every 10 s. */
const SILENCE_MS = 20_000;
/** A tab that is hidden for longer lets its connection go: browsers allow six of them for a host. */
const HIDDEN_MS = 5_000;

/**
 * The one event stream of this tab. It is open while somebody listens and the tab is seen, or an answer runs.
 * After a drop it is opened again; `onReady` then says whether something was missed.
 */
export class Events {
  #open: { id: string; handler: ConversationHandler } | null = null;
  #lists = new Set<(change: ListChange) => void>();
  #stream: AbortController | null = null;
  #hidden: Timer | undefined;
  #opening: Timer | undefined;
  #busy = false;
  #connectedBefore = false;

  constructor() {
    if (typeof document !== "undefined") document.addEventListener("visibilitychange", () => this.#onVisibility());
  }

  /** Listen to one conversation, in place of the former one, until the returned function is called. */
  subscribe(id: string, handler: ConversationHandler): () => void {
    this.#open = { id, handler };
    this.#reopen();
    return () => {
      if (this.#open?.handler !== handler) return;
      this.#open = null;
      this.#busy = false;
      this.#reopen();
    };
  }

  /** Listen to changes of the list of conversations. */
  onList(handler: (change: ListChange) => void): () => void {
    this.#lists.add(handler);
    if (!this.#stream) this.#reopen();
    return () => {
      this.#lists.delete(handler);
      if (!this.#hasListeners) this.#close();
    };
  }

  /** While an answer runs, a hidden tab keeps its connection. */
  set busy(busy: boolean) {
    this.#busy = busy;
    if (!busy && document.hidden) this.#onVisibility();
  }

  /** Whether a stream is open or being opened. */
  get active(): boolean {
    return this.#stream !== null;
  }

  get #hasListeners(): boolean {
    return this.#open !== null || this.#lists.size > 0;
  }

  #notifyLists(change: ListChange): void {
    for (const list of this.#lists) list(change);
  }

  #onVisibility(): void {
    clearTimeout(this.#hidden);
    if (!document.hidden) {
      if (!this.#stream) this.#reopen();
    } else if (!this.#busy) {
      this.#hidden = setTimeout(() => this.#close(), HIDDEN_MS);
    }
  }

  #close(): void {
    clearTimeout(this.#opening);
    this.#stream?.abort();
    this.#stream = null;
  }

  /** Soon, so that a list and a conversation that subscribe in one turn share one connection. */
  #reopen(): void {
    this.#close();
    if (this.#hasListeners) this.#opening = setTimeout(() => this.#start(), 0);
  }

  #start(conversation = this.#open?.id): void {
    const controller = new AbortController();
    this.#stream = controller;
    const query = conversation ? `?conversation=${encodeURIComponent(conversation)}` : "";
    void follow(`/api/events${query}`, {
      signal: controller.signal,
      silenceMs: SILENCE_MS,
      onDrop: () => this.#open?.handler.onDrop?.(),
      onEvent: (event) => this.#dispatch(event),
    }).catch((error: unknown) => this.#onRefused(error, controller, conversation));
  }

  /** Without its conversation, which is gone, the list is still of interest. */
  #onRefused(error: unknown, controller: AbortController, conversation: string | undefined): void {
    if (this.#stream !== controller) return;
    this.#stream = null;
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 404 && conversation && this.#lists.size) this.#start("");
  }

  #dispatch({ event, data }: ServerEvent): void {
    const value = parse(data) as never;
    const handler = this.#open?.handler;
    switch (event) {
      case "ready":
        return this.#onReady(value);
      case "list":
        return this.#notifyLists(value);
      case "message": {
        const { message, seen_from } = value as { message: Message; seen_from?: string | null };
        return handler?.onMessage(message, seen_from);
      }
      case "delta":
        return handler?.onDelta(value);
      case "waiting":
        return handler?.onWaiting(value);
      case "start":
        return handler?.onStart?.(value);
      case "done":
      case "failed":
        return handler?.onEnd((value as { message: Message }).message, (value as { seen_from: string | null }).seen_from);
      case "resync":
        this.#notifyLists({ change: "reset", conversation: null });
        return handler?.onResync();
    }
  }

  #onReady({ version }: { version: string }): void {
    if (this.#connectedBefore) this.#notifyLists({ change: "reset", conversation: null });
    this.#connectedBefore = true;
    if (version) this.#open?.handler.onReady(version);
  }
}

export const events = new Events();

/**
 * The text after a delta. Text that is known already changes nothing: after a reconnect it comes from its beginning,
 * and after a restart the server may have less of it than is shown, and writes the same again.
 */
export function withDelta(content: string, { offset, text }: TextDelta): string {
  if (content.startsWith(text, offset)) return content;
  return content.slice(0, offset) + text;
}
