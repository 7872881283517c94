import { count, tenths } from "../../lib/format";
import { t } from "../../lib/i18n.svelte";
import type { ShownState, TreeNode } from "../../lib/types";

export type Tone = "calm" | "active" | "notice" | "off" | "bad" | "new";

/** A state's tone picks its colour; the words say the same without it. */
export const TONES: Record<ShownState, Tone> = {
  starting: "new",
  idle: "calm",
  busy: "active",
  holding: "notice",
  draining: "notice",
  drained: "off",
  below_draining: "off",
  cut_off: "bad",
  unhealthy: "bad",
  frozen: "bad",
  lost: "bad",
  gone: "bad",
};

/** A node of a later release may be in a state that this page does not know. */
export function toneOf(shown: string): Tone {
  return Object.hasOwn(TONES, shown) ? TONES[shown as ShownState] : "off";
}

/** The state in words. */
export function stateText(shown: string): string {
  return Object.hasOwn(TONES, shown) ? t(`tree.state.${shown as ShownState}`) : shown;
}

/** The entrance of a tree: it keeps the backlog and runs nothing itself. */
export function isEntrance(node: TreeNode): boolean {
  return node.engine === "none" && node.slots === 0;
}

/** Where a node's process runs. */
export function place(node: TreeNode): string {
  if (node.host) return `${node.host}:${node.pid}`;
  if (node.state === "lost") return t("tree.noAnswer");
  return t(node.state === "down" ? "tree.noProcess" : "tree.notHeard");
}

/** What an operator must know of a node at first sight; null if nothing is wrong. */
export function trouble(node: TreeNode): string | null {
  if (node.state === "failed") return node.detail || t("tree.engineFailed");
  if (node.shown === "below_draining") return t("truth.belowDraining", { name: node.blocked_by ?? "" });
  if (node.shown === "cut_off") return t("truth.cutOffBy", { name: node.blocked_by || "–" });
  if (hasWrongClock(node)) return t("tree.clockIs", { clock: clock(node) ?? "" });
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
  if (Math.abs(seconds) < 0.05) return t("tree.clockSame");
  return t(seconds > 0 ? "tree.clockAhead" : "tree.clockBehind", { time: tenths(Math.abs(seconds)) });
}

/** How long jobs waited at a node lately; null where none had to. */
export function waits(node: TreeNode): string | null {
  if (node.waited <= 0) return null;
  return t("tree.waits", { time: tenths(node.waited), error: tenths(node.wait_error) });
}

/** How much of the prompts was not read again; null where none was read. */
export function reuse(node: TreeNode): string | null {
  if (node.prompt_tokens <= 0) return null;
  const share = Math.round((100 * node.reused_tokens) / node.prompt_tokens);
  return t("tree.reuse", { share, count: count(node.prompt_tokens) });
}

export type Action = "drain" | "resume";

/** What an operator can ask of a node now. An entrance is not drained: nothing would reach its tree. */
export function possibleAction(node: TreeNode): Action | null {
  if (node.state === "draining" || node.state === "drained") return "resume";
  if (isEntrance(node) || node.state === "down" || node.state === "lost" || node.state === "failed") return null;
  return "drain";
}
