import type { TreeNode } from "../lib/types";

/** Where a tree's cards and edges are drawn, in CSS pixels from the top left corner. Pure: no DOM, no clock. */

export interface Sizes {
  cardWidth: number;
  cardHeight: number;
  /** Between neighbours. */
  gapX: number;
  /** Between generations. */
  gapY: number;
  /** Between trees that stand side by side. */
  gapTrees: number;
}

export const SIZES: Sizes = { cardWidth: 216, cardHeight: 146, gapX: 20, gapY: 48, gapTrees: 56 };

export interface Branch {
  node: TreeNode;
  children: Branch[];
  /** Its parent is not in the registry (any more). */
  orphan: boolean;
}

export interface PlacedNode {
  node: TreeNode;
  orphan: boolean;
  x: number;
  y: number;
}

export interface Edge {
  from: string;
  to: string;
  /** SVG path data. */
  path: string;
}

export interface Layout {
  width: number;
  height: number;
  nodes: PlacedNode[];
  edges: Edge[];
}

/**
 * The nodes as trees: declared roots first, then nodes whose parent is missing, then what a cycle would hide.
 * Siblings follow their parent's list of children, then their names; each node appears exactly once.
 */
export function forest(nodes: TreeNode[], roots: string[]): Branch[] {
  const byName = new Map(nodes.map((node) => [node.name, node]));
  const placed = new Set<string>();
  const childrenOf = (parent: TreeNode): TreeNode[] => {
    const rank = (node: TreeNode): number => (parent.children.indexOf(node.name) + 1 || Number.MAX_SAFE_INTEGER);
    return nodes.filter((node) => node.parent === parent.name).sort((a, b) => rank(a) - rank(b) || compareNames(a.name, b.name));
  };
  const grow = (node: TreeNode, orphan: boolean): Branch[] => {
    if (placed.has(node.name)) return [];
    placed.add(node.name);
    return [{ node, orphan, children: childrenOf(node).flatMap((child) => grow(child, false)) }];
  };
  const declared = roots.flatMap((name) => byName.get(name) ?? []);
  const parentless = nodes.filter((node) => node.parent === null || !byName.has(node.parent));
  return [...declared, ...parentless, ...nodes].flatMap((node) => grow(node, node.parent !== null));
}

/** n2 before n10. */
export function compareNames(a: string, b: string): number {
  return a.localeCompare(b, "en", { numeric: true });
}

/** Trees as one list with depths, in reading order: the phone's view. */
export function outline(branches: Branch[], depth = 0): { node: TreeNode; orphan: boolean; depth: number }[] {
  return branches.flatMap(({ node, orphan, children }) => [{ node, orphan, depth }, ...outline(children, depth + 1)]);
}

/**
 * Lay out trees side by side, parents centred above their children.
 * When that is wider than `maxWidth`, leaves of one parent hang below each other, which about halves the width.
 */
export function layoutForest(branches: Branch[], maxWidth: number, sizes: Sizes = SIZES): Layout {
  const wide = arrange(branches, false, sizes);
  return wide.width <= maxWidth ? wide : arrange(branches, true, sizes);
}

/** How far hanging leaves are moved right of their trunk. */
const HANG_INDENT = 22;
const HANG_GAP = 14;

function hangs(branch: Branch, hang: boolean): boolean {
  return hang && branch.children.length > 1 && branch.children.every((child) => child.children.length === 0);
}

function arrange(branches: Branch[], hang: boolean, sizes: Sizes): Layout {
  const layout: Layout = { width: 0, height: 0, nodes: [], edges: [] };
  let x = 0;
  for (const branch of branches) x = place(branch, x, 0, hang, sizes, layout).right + sizes.gapTrees;
  layout.width = Math.max(0, x - sizes.gapTrees);
  layout.height = Math.max(0, ...layout.nodes.map((node) => node.y + sizes.cardHeight));
  return layout;
}

interface Span {
  /** The root's card. */
  card: PlacedNode;
  /** The right border of the whole subtree. */
  right: number;
}

/** Place a subtree whose left border is at `x`; adds to `layout`. */
function place(branch: Branch, x: number, y: number, hang: boolean, sizes: Sizes, layout: Layout): Span {
  const card: PlacedNode = { node: branch.node, orphan: branch.orphan, x, y };
  layout.nodes.push(card);
  const span = hangs(branch, hang) ? placeHanging(branch, card, sizes, layout) : placeBelow(branch, card, hang, sizes, layout);
  return { card, right: Math.max(span, card.x + sizes.cardWidth) };
}

function placeHanging(branch: Branch, card: PlacedNode, sizes: Sizes, layout: Layout): number {
  branch.children.forEach((child, index) => {
    const y = card.y + sizes.cardHeight + HANG_GAP + index * (sizes.cardHeight + HANG_GAP);
    const below = { node: child.node, orphan: child.orphan, x: card.x + HANG_INDENT, y };
    layout.nodes.push(below);
    layout.edges.push({ from: branch.node.name, to: child.node.name, path: trunkPath(card, below, sizes) });
  });
  return card.x + HANG_INDENT + sizes.cardWidth;
}

function placeBelow(branch: Branch, card: PlacedNode, hang: boolean, sizes: Sizes, layout: Layout): number {
  const y = card.y + sizes.cardHeight + sizes.gapY;
  const cards: PlacedNode[] = [];
  let right = card.x - sizes.gapX;
  for (const child of branch.children) {
    const span = place(child, right + sizes.gapX, y, hang, sizes, layout);
    right = span.right;
    cards.push(span.card);
  }
  const [first, last] = [cards[0], cards.at(-1)];
  if (first && last) card.x = (first.x + last.x) / 2;
  for (const child of cards) layout.edges.push({ from: branch.node.name, to: child.node.name, path: curvePath(card, child, sizes) });
  return right;
}

/** From the bottom centre of a card, in an S to the top centre of another. */
function curvePath(from: PlacedNode, to: PlacedNode, sizes: Sizes): string {
  const [x1, y1] = [from.x + sizes.cardWidth / 2, from.y + sizes.cardHeight];
  const [x2, y2] = [to.x + sizes.cardWidth / 2, to.y];
  const middle = (y1 + y2) / 2;
  return `M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${y2}`;
}

/** Down along the trunk at the left, then right into a hanging card. */
function trunkPath(from: PlacedNode, to: PlacedNode, sizes: Sizes): string {
  const x = from.x + HANG_INDENT / 2;
  const y = to.y + sizes.cardHeight / 2;
  const radius = HANG_INDENT / 2;
  return `M${x} ${from.y + sizes.cardHeight}V${y - radius}Q${x} ${y} ${to.x} ${y}`;
}
