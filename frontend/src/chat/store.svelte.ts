import { ApiError, api, errorText } from "../lib/api";
import { events } from "../lib/events";
import { router } from "../lib/router.svelte";
import { session } from "../lib/session.svelte";
import { toasts } from "../lib/toasts.svelte";
import type { Model } from "../lib/types";
import { keepSecondModel, secondModelOf } from "./comparison";
import { OpenConversation } from "./conversation.svelte";

/** The models, the one that answers next, and the open conversation. */
export class ChatStore {
  models = $state.raw<Model[]>([]);
  readonly chat: OpenConversation = new OpenConversation({
    model: (): string | null => this.model,
    secondModel: (): string | null => this.secondModel,
    preset: (): string | null => this.nextPreset?.id ?? null,
    created: ({ id }, second, shown) => {
      keepSecondModel(id, second);
      keepSecondModel(null, null);
      this.nextPreset = null;
      if (shown) router.go(`/c/${id}`);
    },
  });
  #chosen = $state<string | null>(null);
  #second = $state<string | null>(null);

  /** The model that answers next. */
  model: string | null = $derived(this.chat.current?.model ?? this.#chosen ?? session.defaultModel ?? this.models[0]?.id ?? null);

  /** The model whose answers stand beside those of the first; null: no comparison. */
  secondModel: string | null = $derived(this.#second === this.model ? null : this.#second);

  /** The preset that the next new conversation begins with. */
  nextPreset = $state.raw<{ id: string; name: string } | null>(null);
  /** The name of the preset that says how answers are wanted; empty for none. */
  presetName: string = $derived(this.chat.current ? (this.chat.current.preset ?? "") : (this.nextPreset?.name ?? ""));

  /** With which model the open conversation is compared, as this or another tab has chosen. */
  readSecondModel(conversation: string | null): void {
    this.#second = secondModelOf(conversation);
  }

  compareWith(model: string | null): void {
    this.#second = model;
    keepSecondModel(this.chat.id, model);
  }

  /** Show what another tab or device does to the open conversation, until the returned function is called. */
  followList(): () => void {
    return events.onList((change) => {
      if (change.change === "deleted" && change.conversation.id === this.chat.id) void this.chat.reload();
      if (change.change === "created" || change.change === "updated") this.chat.onSummary(change.conversation);
    });
  }

  /** Ask which models are served; a failure changes nothing, the next call comes soon. */
  async loadModels(): Promise<void> {
    try {
      this.models = (await api.models()).models;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
    }
  }

  async chooseModel(model: string): Promise<void> {
    this.#chosen = model;
    const conversation = this.chat.current;
    if (!conversation) return;
    const before = conversation.model;
    conversation.model = model;
    try {
      await api.updateConversation(conversation.id, { model });
    } catch (error) {
      if (conversation.model === model) conversation.model = before; // else another was chosen since
      if (error instanceof ApiError && error.status === 401) return; // the login page says so
      toasts.show(errorText(error));
    }
  }
}
