import type { Tree, TreeNode, TreeSums } from "../src/lib/types";

/** A node at rest; tests change what they are about. */
export const BLANK: TreeNode = {
  name: "",
  parent: null,
  children: [],
  model: "m",
  engine: "echo",
  device: "",
  memory: 0,
  memory_total: 0,
  state: "idle",
  shown: "idle",
  blocked_by: null,
  root: "root",
  slots: 1,
  usable: 1,
  running: 0,
  queued: 0,
  held: 0,
  depth: 0,
  received: 0,
  finished: 0,
  failed: 0,
  errors: 0,
  tokens: 0,
  tokens_per_second: 0,
  jobs_per_second: 0,
  host: "h",
  pid: 1,
  waited: 0,
  oldest_wait: 0,
  wait_error: 0,
  prompt_tokens: 0,
  reused_tokens: 0,
  uptime: 1,
  detail: "",
  policy: "",
  seen: 0,
  warning: "",
  clock_difference: 0,
  version: "0.1.0",
  loaded: null,
  joined: false,
};

export const SUMS: TreeSums = {
  nodes: 0,
  gone: 0,
  unhealthy: 0,
  waiting: 0,
  running: 0,
  slots: 0,
  usable: 0,
  in_use: 0,
  oldest_wait: 0,
  tokens_per_second: 0,
  errors: 0,
  state: "idle",
  reason: "",
  blockers: [],
  resume: [],
};

/** A tree of these nodes. */
export function treeOf(nodes: TreeNode[], roots = ["root"]): Tree {
  return { roots, nodes, summary: { total: { ...SUMS, dead: 0 }, trees: [] }, at: "2026-01-01T00:00:00+00:00" };
}
