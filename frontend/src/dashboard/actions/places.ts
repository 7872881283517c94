import type { TreeNode } from "../../lib/types";
import { type NodeAction } from "./operations.svelte";

/** Whether nodes of that model can hang below the node: a joined one is a leaf. Pure. */
export function takesNodes(node: TreeNode, model: string | undefined): boolean {
  return node.model === model && node.state !== "down" && !node.joined;
}

/** The nodes below which `name` can hang: neither itself nor below it. Pure. */
export function possibleParents(nodes: TreeNode[], name: string): string[] {
  const moved = nodes.find((node) => node.name === name);
  if (!moved) return [];
  const below = subtree(nodes, name);
  return nodes
    .filter((node) => takesNodes(node, moved.model) && !below.has(node.name) && node.name !== moved.parent)
    .map((node) => node.name);
}

/** The node and all below it. */
export function subtree(nodes: TreeNode[], name: string): Set<string> {
  const children = new Map(nodes.map((node) => [node.name, node.children]));
  const found = new Set([name]);
  for (const each of found) for (const child of children.get(each) ?? []) found.add(child);
  return found;
}

export interface Choice {
  action: NodeAction;
  whole?: boolean;
}

/** What an operator can ask of a node now. Nothing reaches a node that is down; what is left of an entrance can be removed. */
export function choices(node: TreeNode): Choice[] {
  if (node.state === "down") return node.root === node.name && node.queued === 0 ? [{ action: "remove" }] : [];
  const entrance = node.engine === "none";
  const drained = node.state === "draining" || node.state === "drained";
  const list: Choice[] = [];
  if (drained) list.push({ action: "resume" });
  else if (!entrance && node.state !== "failed") list.push({ action: "drain" });
  list.push({ action: "restart" });
  if (node.children.length) list.push({ action: "restart", whole: true });
  if (!entrance) list.push({ action: "move" }, { action: "remove" });
  return list;
}
