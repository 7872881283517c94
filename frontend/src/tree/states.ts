import { count, tenths } from "../lib/format";
import type { NodeState, Tree, TreeNode } from "../lib/types";

/** How a state is shown. The tone picks the colour; the words say the same without it. */
export interface StateLook {
  label: string;
  tone: "calm" | "active" | "notice" | "off" | "bad" | "new";
}

export const STATES: Record<NodeState, StateLook> = {
  starting: { label: "Starting", tone: "new" },
  idle: { label: "Idle", tone: "calm" },
  busy: { label: "Busy", tone: "active" },
  draining: { label: "Draining", tone: "notice" },
  drained: { label: "Drained", tone: "off" },
  failed: { label: "Failed", tone: "bad" },
  down: { label: "Down", tone: "bad" },
};

/** The entrance of a tree: it keeps the backlog and runs nothing itself. */
export function isEntrance(node: TreeNode): boolean {
  return node.engine === "none" && node.slots === 0;
}

/** Where a node's process runs. */
export function place(node: TreeNode): string {
  return node.host ? `${node.host}:${node.pid}` : "not heard yet";
}

/** What an operator must know of a node at first sight; null if nothing is wrong. */
export function trouble(node: TreeNode): string | null {
  if (node.state === "failed") return node.detail || "its engine has failed";
  if (hasWrongClock(node)) return `its clock is ${clock(node)}`;
  return node.warning || null;
}

/** Seconds by which a node's clock may differ from the server's before anybody is warned. */
const CLOCK_WARNING = 2;

function hasWrongClock(node: TreeNode): boolean {
  return Math.abs(node.clock_difference ?? 0) > CLOCK_WARNING;
}

/** How a node's clock differs from the server's; null while it is not known. */
export function clock(node: TreeNode): string | null {
  const seconds = node.clock_difference;
  if (seconds === null) return null;
  if (Math.abs(seconds) < 0.05) return "as the server's";
  return `${tenths(Math.abs(seconds))} ${seconds > 0 ? "ahead of" : "behind"} the server's`;
}

/** How long jobs waited at a node lately; null where none had to. */
export function waits(node: TreeNode): string | null {
  if (node.waited <= 0) return null;
  return `${tenths(node.waited)} on average, estimates off by ${tenths(node.wait_error)}`;
}

/** How much of the prompts was not read again; null where none was read. */
export function reuse(node: TreeNode): string | null {
  if (node.prompt_tokens <= 0) return null;
  return `${Math.round((100 * node.reused_tokens) / node.prompt_tokens)} % of ${count(node.prompt_tokens)} tokens held already`;
}

export type Action = "drain" | "resume";

/** What an operator can ask of a node now. An entrance is not drained: nothing would reach its tree. */
export function possibleAction(node: TreeNode): Action | null {
  if (node.state === "draining" || node.state === "drained") return "resume";
  if (isEntrance(node) || node.state === "down" || node.state === "failed") return null;
  return "drain";
}

export interface Totals {
  nodes: number;
  down: number;
  failed: number;
  slots: number;
  running: number;
  queued: number;
  /** Seconds, mean over the latest jobs that had to wait: of the node with the longest, among those where some wait now. */
  waited: number;
}

/** Sums over a tree; a node that is down or has failed offers no slots. */
export function totals(tree: Tree): Totals {
  const alive = tree.nodes.filter((node) => node.state !== "down");
  const sum = (value: (node: TreeNode) => number): number => alive.reduce((total, node) => total + value(node), 0);
  return {
    nodes: alive.length,
    down: tree.nodes.length - alive.length,
    failed: sum((node) => (node.state === "failed" ? 1 : 0)),
    slots: sum((node) => (node.state === "failed" ? 0 : node.slots)),
    running: sum((node) => node.running),
    queued: tree.nodes.reduce((total, node) => total + node.queued, 0),
    waited: Math.max(0, ...alive.map((node) => (node.queued > 0 ? node.waited : 0))),
  };
}
