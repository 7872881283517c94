import { SvelteMap } from "svelte/reactivity";
import { ApiError, api } from "../lib/api";
import { follow } from "../lib/sse";
import type { Tree, TreeNode, TreePatch, TrendSample } from "../lib/types";
import { arrivals, patched, sameShape } from "./patching";

export type Connection = "connecting" | "live" | "reconnecting" | "refused";
/** Jobs that came to nodes, by node. */
export type Arrivals = ReadonlyMap<string, number>;

/** The server says something every 5 s. */
const SILENCE_MS = 12_000;
const SAMPLE_MS = 5000;
const MAX_SAMPLES = 180;

/** The tree as last heard. */
export class TreeStore {
  tree = $state.raw<Tree | null>(null);
  /** The latest tree whose nodes are others, or hang elsewhere, than before: what is drawn depends on it alone. */
  shape = $state.raw<Tree | null>(null);
  /** The same nodes as in `tree`; who reads one hears of that one's changes. */
  nodes = new SvelteMap<string, TreeNode>();
  /** The sums of the last 15 minutes, oldest first. */
  trend = $state.raw<TrendSample[]>([]);
  connection = $state<Connection>("connecting");
  /** Why the server refuses to show the tree. */
  problem = $state<ApiError | null>(null);
  selected = $state<string | null>(null);
  #following: AbortController | null = null;
  #movers = new Set<(arrivals: Arrivals) => void>();

  node = $derived(this.selected === null ? null : (this.nodes.get(this.selected) ?? null));

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

  /** Calls `mover` when jobs came to nodes; returns what ends that. */
  onArrivals(mover: (arrivals: Arrivals) => void): () => void {
    this.#movers.add(mover);
    return () => this.#movers.delete(mover);
  }

  async #listen(signal: AbortSignal): Promise<void> {
    try {
      await follow(api.treeStreamPath, {
        signal,
        silenceMs: SILENCE_MS,
        onDrop: () => (this.connection = "reconnecting"),
        onEvent: ({ event, data }) => this.#hear(event, JSON.parse(data)),
      });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.problem = error;
      this.connection = "refused";
    }
  }

  #hear(event: string, payload: unknown): void {
    if (event === "trend") this.trend = payload as TrendSample[];
    if (event === "tree") this.#show(payload as Tree);
    if (event === "patch" && this.tree) this.#show(patched(this.tree, payload as TreePatch));
  }

  #show(tree: Tree): void {
    const former = this.tree;
    this.connection = "live";
    this.tree = tree;
    if (!this.shape || !sameShape(this.shape, tree)) this.shape = tree;
    this.#keep(tree);
    this.#sample(tree);
    if (!former) return;
    const moved = arrivals(former, tree);
    if (moved.size) for (const mover of this.#movers) mover(moved);
  }

  #keep(tree: Tree): void {
    const names = new Set(tree.nodes.map((node) => node.name));
    for (const name of this.nodes.keys()) if (!names.has(name)) this.nodes.delete(name);
    for (const node of tree.nodes) {
      const former = this.nodes.get(node.name);
      if (former === node) continue;
      this.nodes.set(node.name, node);
    }
  }

  #sample(tree: Tree): void {
    const last = this.trend.at(-1);
    if (last && Date.parse(tree.at) - Date.parse(last.at) < SAMPLE_MS) return;
    this.trend = [...this.trend, { ...tree.summary.total, at: tree.at }].slice(-MAX_SAMPLES);
  }
}
