import { ApiError, api, errorText } from "../lib/api";
import { router } from "../lib/router.svelte";
import { session } from "../lib/session.svelte";
import { follow } from "../lib/sse";
import { toasts } from "../lib/toasts.svelte";
import type { ConversationSummary, Model } from "../lib/types";
import { answerEvents, seenFrom, type ShownMessage } from "./answer";
import { keepDraft } from "./drafts";

/** A dropped connection that is back within this time, as after a restart of the server, is nobody's business. */
const QUIET_DROP_MS = 5000;

type Loading = "loading" | "ready" | "failed";

interface OpenConversation extends ConversationSummary {
  messages: ShownMessage[];
  seen_from: string | null;
}

/** Everything the chat page shows, and the only place that changes it. */
export class ChatStore {
  conversations = $state<ConversationSummary[]>([]);
  listState = $state<Loading>("loading");
  models = $state.raw<Model[]>([]);
  current = $state<OpenConversation | null>(null);
  currentState = $state<Loading>("ready");
  /** Why the open conversation cannot be shown. */
  problem = $state<string | null>(null);
  /** A message is on its way to the server. */
  sending = $state(false);
  /** The connection to the running answer broke; it is being opened again. */
  reconnecting = $state(false);
  #chosen = $state<string | null>(null);
  #wanted: string | null = null;
  #following: AbortController | null = null;

  /** The running answer, if there is one. */
  streaming = $derived(this.current?.messages.find((message) => message.status === "streaming") ?? null);
  /** The first message that the model still sees; null if it sees all. */
  seenFrom = $derived(this.current ? seenFrom(this.current) : null);
  /** The model that answers next. */
  model = $derived(this.current?.model ?? this.#chosen ?? session.defaultModel ?? this.models[0]?.id ?? null);

  async loadList(): Promise<void> {
    try {
      this.conversations = (await api.conversations()).conversations;
      this.listState = "ready";
    } catch (error) {
      if (this.listState === "loading") this.listState = "failed";
      else this.#tell(error);
    }
  }

  /** Ask which models are served; a failure changes nothing, the next call comes soon. */
  async loadModels(): Promise<void> {
    try {
      this.models = (await api.models()).models;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
    }
  }

  /** Show a conversation (null: a new one) and attach to its running answer. */
  async open(id: string | null): Promise<void> {
    this.#wanted = id;
    if ((this.current?.id ?? null) === id && this.currentState === "ready") return;
    this.close();
    this.current = null;
    this.problem = null;
    this.currentState = id ? "loading" : "ready";
    if (id) await this.#load(id);
  }

  async #load(id: string): Promise<void> {
    try {
      const conversation = await api.conversation(id);
      if (this.#wanted !== id) return;
      this.current = conversation;
      this.currentState = "ready";
      this.#attach();
    } catch (error) {
      if (this.#wanted !== id) return;
      const missing = error instanceof ApiError && error.status === 404;
      this.problem = missing ? "This conversation does not exist, or it is not yours." : errorText(error);
      this.currentState = "failed";
    }
  }

  /** Read the open conversation again, for example after a failed load. */
  async reload(): Promise<void> {
    const id = this.#wanted;
    if (!id) return;
    this.close();
    await this.#load(id);
  }

  /** Stop listening; the answer itself goes on at the server. */
  close(): void {
    this.#following?.abort();
    this.#following = null;
    this.reconnecting = false;
  }

  /** Send a message; true when the server took it. On false, the caller keeps the text. */
  async send(content: string): Promise<boolean> {
    if (this.sending || this.streaming) return false;
    this.sending = true;
    toasts.clear();
    try {
      const conversation = this.current ?? (await this.#create(content));
      const pair = await api.send(conversation.id, content, this.model);
      if (this.current?.id === conversation.id) {
        this.current.messages.push(pair.user_message, pair.assistant_message);
        this.#attach();
      }
      keepDraft(conversation.id, "");
      void this.loadList();
      return true;
    } catch (error) {
      this.#tell(error);
      if (error instanceof ApiError && error.status === 409) void this.reload();
      return false;
    } finally {
      this.sending = false;
    }
  }

  async #create(draft: string): Promise<OpenConversation> {
    const made = await api.createConversation(this.model);
    keepDraft(null, "");
    keepDraft(made.id, draft);
    this.conversations = [made, ...this.conversations];
    this.current = { ...made, messages: [], seen_from: null };
    this.#wanted = made.id;
    router.go(`/c/${made.id}`);
    return this.current;
  }

  async stop(): Promise<void> {
    const message = this.streaming;
    if (!this.current || !message) return;
    try {
      await api.stop(this.current.id, message.id);
      this.close();
      if (message.status === "streaming") message.status = "stopped";
      message.waiting = null;
    } catch (error) {
      this.#tell(error);
    }
  }

  async chooseModel(model: string): Promise<void> {
    this.#chosen = model;
    const conversation = this.current;
    if (!conversation) return;
    const before = conversation.model;
    conversation.model = model;
    try {
      await api.updateConversation(conversation.id, { model });
    } catch (error) {
      conversation.model = before;
      this.#tell(error);
    }
  }

  async rename(id: string, title: string): Promise<void> {
    const entry = this.conversations.find((conversation) => conversation.id === id);
    if (!entry || !title || entry.title === title) return;
    const before = entry.title;
    this.#setTitle(id, title);
    try {
      await api.updateConversation(id, { title });
    } catch (error) {
      this.#setTitle(id, before);
      this.#tell(error);
    }
  }

  #setTitle(id: string, title: string): void {
    const entry = this.conversations.find((conversation) => conversation.id === id);
    if (entry) entry.title = title;
    if (this.current?.id === id) this.current.title = title;
  }

  /** Delete a conversation; true when it is gone. */
  async remove(id: string): Promise<boolean> {
    try {
      await api.deleteConversation(id);
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 404)) {
        this.#tell(error);
        return false;
      }
    }
    this.conversations = this.conversations.filter((conversation) => conversation.id !== id);
    keepDraft(id, "");
    if (this.#wanted === id) router.go("/");
    return true;
  }

  /** Listen to the running answer, if there is one, until it ends. */
  #attach(): void {
    const conversation = this.current;
    const message = this.streaming;
    if (!conversation || !message) return;
    this.close();
    const controller = new AbortController();
    this.#following = controller;
    void this.#listen(conversation.id, message, controller.signal);
  }

  async #listen(id: string, message: ShownMessage, signal: AbortSignal): Promise<void> {
    let take = answerEvents(message);
    let drop: ReturnType<typeof setTimeout> | undefined;
    try {
      await follow(api.streamPath(id, message.id), {
        signal,
        onOpen: () => {
          take = answerEvents(message);
          clearTimeout(drop);
          drop = undefined;
          this.reconnecting = false;
        },
        onDrop: () => (drop ??= setTimeout(() => (this.reconnecting = !signal.aborted), QUIET_DROP_MS)),
        onEvent: (event) => take(event),
      });
    } catch (error) {
      message.status = "failed";
      message.error = errorText(error);
    }
    clearTimeout(drop);
    if (!signal.aborted) void this.loadList();
  }

  /** Errors that the login page explains by itself need no second line. */
  #tell(error: unknown): void {
    if (error instanceof ApiError && error.status === 401) return;
    toasts.show(errorText(error));
  }
}
