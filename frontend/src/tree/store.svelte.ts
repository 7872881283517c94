import { ApiError, api, errorText } from "../lib/api";
import { follow } from "../lib/sse";
import { toasts } from "../lib/toasts.svelte";
import type { Tree } from "../lib/types";
import type { Action } from "./states";

export type Connection = "connecting" | "live" | "reconnecting" | "refused";

/** An accepted request counts as pending until the node's state follows, but no longer than this. */
const PENDING_MS = 8000;

/** The tree as last heard, and what was asked of its nodes. */
export class TreeStore {
  tree = $state.raw<Tree | null>(null);
  connection = $state<Connection>("connecting");
  /** Why the server refuses to show the tree. */
  problem = $state<ApiError | null>(null);
  selected = $state<string | null>(null);
  /** Requests under way, by node. */
  pending = $state<Record<string, Action>>({});
  #following: AbortController | null = null;

  node = $derived(this.tree?.nodes.find((node) => node.name === this.selected) ?? null);

  start(): void {
    this.stop();
    this.problem = null;
    this.connection = "connecting";
    this.#following = new AbortController();
    void this.#listen(this.#following.signal);
  }

  stop(): void {
    this.#following?.abort();
    this.#following = null;
  }

  async #listen(signal: AbortSignal): Promise<void> {
    try {
      await follow(api.treeStreamPath, {
        signal,
        onDrop: () => (this.connection = "reconnecting"),
        onEvent: ({ event, data }) => {
          if (event === "tree") this.#show(JSON.parse(data) as Tree);
        },
      });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.problem = error;
      this.connection = "refused";
    }
  }

  #show(tree: Tree): void {
    this.connection = "live";
    const before = new Map(this.tree?.nodes.map((node) => [node.name, node.state]));
    this.tree = tree;
    for (const node of tree.nodes) {
      if (before.get(node.name) !== node.state) delete this.pending[node.name];
    }
  }

  /** Ask a node to drain or to resume; the tree's next event shows whether it did. */
  async ask(name: string, action: Action): Promise<void> {
    if (this.pending[name]) return;
    this.pending[name] = action;
    try {
      await api[action](name);
      setTimeout(() => delete this.pending[name], PENDING_MS);
    } catch (error) {
      delete this.pending[name];
      toasts.show(`${name}: ${errorText(error)}`);
    }
  }
}
