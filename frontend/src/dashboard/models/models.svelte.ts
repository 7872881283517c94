import { ApiError, request } from "../../lib/api";
import { Latest } from "../../lib/latest";
import { toasts } from "../../lib/toasts.svelte";

export interface ServedNode {
  name: string;
  root: boolean;
  state: string;
  host: string;
  device: string;
  engine: string;
  slots: number;
  running: number;
  queued: number;
  /** Of its model; amounts are bytes, 0: unknown. `cache`: keys and values; `memory_free`: of its device. */
  precision: string;
  weights: number;
  cache: number;
  memory: number;
  memory_total: number;
  memory_free: number;
}

/** Nodes between two numbers, and nobody waiting for long; times in seconds. */
export interface Rule {
  least: number;
  most: number;
  target_wait: number;
  cooldown: number;
}

/** Where a request, and its user, name no value; null: the engine's own. */
export const DEFAULTS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"] as const;

/** What operators set of a model. */
export interface Card extends Record<(typeof DEFAULTS)[number], number | null> {
  description: string;
  /** Of answers whose request names no number, and of any answer. */
  max_tokens: number | null;
  most_tokens: number | null;
  /** Of one user at a time. */
  most_requests: number | null;
}

export interface ServedModel extends Card {
  model: string;
  nodes: ServedNode[];
  slots: number;
  usable: number;
  context: number | null;
  autoscale: Rule | null;
  /** The hosts that allow it. */
  loadable: string[];
}

/** The settings among what is known of a model. */
export function cardOf(model: ServedModel): Card {
  const { description, max_tokens, most_tokens, most_requests } = model;
  const { temperature, top_p, top_k, min_p, repetition_penalty, frequency_penalty, presence_penalty } = model;
  const defaults = { temperature, top_p, top_k, min_p, repetition_penalty, frequency_penalty, presence_penalty };
  return { description, max_tokens, most_tokens, most_requests, ...defaults };
}

const PATH = "/api/operate/models";
const READ_AGAIN_MS = 5000;

/** The models, read again every few seconds as long as the section is open. */
export class ModelsStore {
  models = $state.raw<ServedModel[] | null>(null);
  problem = $state<ApiError | null>(null);
  #timer: ReturnType<typeof setTimeout> | undefined;
  #open = false;
  readonly #reads = new Latest();

  start(): void {
    this.#open = true;
    void this.read();
  }

  stop(): void {
    this.#open = false;
    clearTimeout(this.#timer);
  }

  async read(): Promise<void> {
    clearTimeout(this.#timer);
    const isLatest = this.#reads.begin();
    try {
      const models = ((await (await request("GET", PATH)).json()) as { models: ServedModel[] }).models;
      if (!isLatest()) return;
      if (JSON.stringify(models) !== JSON.stringify(this.models)) this.models = models;
      this.problem = null;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (this.models === null) this.problem = error;
    }
    if (this.#open) this.#timer = setTimeout(() => void this.read(), READ_AGAIN_MS);
  }

  load(model: string, host: string): Promise<void> {
    return this.#change("POST", "/load", { model, host });
  }

  end(model: string): Promise<void> {
    return this.#change("POST", "/stop", { model });
  }

  describe(model: string, card: Card): Promise<void> {
    return this.#change("PUT", "/settings", { model, ...card });
  }

  scale(model: string, rule: Rule | null): Promise<void> {
    return rule ? this.#change("PUT", "/autoscale", { model, ...rule }) : this.#change("POST", "/autoscale/off", { model });
  }

  /** Throws `ApiError`. */
  async #change(method: string, path: string, body: object): Promise<void> {
    toasts.clear();
    await request(method, PATH + path, { body });
    await this.read();
  }
}
