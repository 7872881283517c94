import type { TreeNode } from "../../lib/types";

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
  /** Between cards that hang below each other, and how far each generation of them moves to the right. */
  hangGap: number;
  hangIndent: number;
}

/** Cards with everything on them, for small trees. */
export const FULL: Sizes = { cardWidth: 216, cardHeight: 146, gapX: 20, gapY: 48, gapTrees: 56, hangGap: 14, hangIndent: 22 };
/** Cards of one line, for trees of many nodes. */
export const COMPACT: Sizes = { cardWidth: 118, cardHeight: 28, gapX: 8, gapY: 22, gapTrees: 24, hangGap: 4, hangIndent: 12 };

export interface Branch {
  node: TreeNode;
  children: Branch[];
  /** Its parent is not in the registry (any more). */
  orphan: boolean;
  /** Nodes below it that are not shown. */
  hidden: number;
}

export interface PlacedNode {
  node: TreeNode;
  orphan: boolean;
  hidden: number;
  x: number;
  y: number;
}

export interface Point {
  x: number;
  y: number;
}

export interface Edge {
  from: string;
  to: string;
  /** SVG path data. */
  path: string;
  /** The same as a line from point to point, for what moves along it. */
  points: Point[];
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
    return [{ node, orphan, hidden: 0, children: childrenOf(node).flatMap((child) => grow(child, false)) }];
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

/** The same trees without what hangs below the collapsed nodes. */
export function collapse(branches: Branch[], collapsed: ReadonlySet<string>): Branch[] {
  return branches.map((branch) => {
    if (!collapsed.has(branch.node.name)) return { ...branch, children: collapse(branch.children, collapsed) };
    return { ...branch, children: [], hidden: outline(branch.children).length };
  });
}

/** How the nodes of a tree are arranged. */
export interface Arrangement {
  /** Subtrees of this generation (the roots are 0) hang: each node below the former one, as in an outline. */
  hangFrom: number;
  /** More cards than this below each other go on in a further column. */
  rows: number;
}

const WIDE: Arrangement = { hangFrom: Number.POSITIVE_INFINITY, rows: 1 };
const ROWS = [8, 12, 18, 24, 34, 48];

/** Of all arrangements the one that is shown largest in a window of that size. */
export function fitForest(branches: Branch[], sizes: Sizes, width: number, height: number): Layout {
  let best = layoutForest(branches, sizes, WIDE);
  for (let hangFrom = depthOf(branches) - 2; hangFrom >= 0; hangFrom--) {
    for (const rows of ROWS) {
      if (scaleOf(best, width, height) >= 1) return best;
      const other = layoutForest(branches, sizes, { hangFrom, rows });
      if (scaleOf(other, width, height) > scaleOf(best, width, height)) best = other;
    }
  }
  return best;
}

/** How large a layout can be shown in a window; 1: as it is. */
export function scaleOf(layout: Layout, width: number, height: number): number {
  return Math.min(1, width / Math.max(1, layout.width), height / Math.max(1, layout.height));
}

function depthOf(branches: Branch[]): number {
  return branches.reduce((deepest, branch) => Math.max(deepest, 1 + depthOf(branch.children)), 0);
}

/** Lay out trees side by side, parents centred above their children unless they hang. */
export function layoutForest(branches: Branch[], sizes: Sizes, arrangement: Arrangement = WIDE): Layout {
  const layout: Layout = { width: 0, height: 0, nodes: [], edges: [] };
  let x = 0;
  for (const branch of branches) x = place(branch, x, 0, arrangement, sizes, layout).right + sizes.gapTrees;
  layout.width = Math.max(0, x - sizes.gapTrees);
  layout.height = layout.nodes.reduce((lowest, node) => Math.max(lowest, node.y + sizes.cardHeight), 0);
  return layout;
}

interface Span {
  /** The root's card. */
  card: PlacedNode;
  /** The borders of the whole subtree. */
  right: number;
  bottom: number;
}

function addCard(branch: Branch, x: number, y: number, layout: Layout): PlacedNode {
  const card: PlacedNode = { node: branch.node, orphan: branch.orphan, hidden: branch.hidden, x, y };
  layout.nodes.push(card);
  return card;
}

/** Place a subtree whose left border is at `x`; adds to `layout`. */
function place(branch: Branch, x: number, y: number, arrangement: Arrangement, sizes: Sizes, layout: Layout): Span {
  if (arrangement.hangFrom <= 0 && branch.children.length > 0) return placeHanging(branch, x, y, arrangement.rows, sizes, layout);
  const card = addCard(branch, x, y, layout);
  const right = placeBelow(branch, card, { ...arrangement, hangFrom: arrangement.hangFrom - 1 }, sizes, layout);
  return { card, right: Math.max(right, card.x + sizes.cardWidth), bottom: y + sizes.cardHeight };
}

function placeHanging(branch: Branch, x: number, y: number, rows: number, sizes: Sizes, layout: Layout): Span {
  const card = addCard(branch, x, y, layout);
  const top = y + sizes.cardHeight + sizes.hangGap;
  const span: Span = { card, right: x + sizes.cardWidth, bottom: y + sizes.cardHeight };
  let left = x + sizes.hangIndent;
  let next = top;
  let cards = 0;
  for (const child of branch.children) {
    const size = 1 + outline(child.children).length;
    if (cards > 0 && cards + size > rows) {
      left = span.right + sizes.gapX + sizes.hangIndent;
      next = top;
      cards = 0;
    }
    const below = placeHanging(child, left, next, rows, sizes, layout);
    layout.edges.push({ from: branch.node.name, to: child.node.name, ...trunk(card, below.card, sizes) });
    next = below.bottom + sizes.hangGap;
    cards += size;
    span.right = Math.max(span.right, below.right);
    span.bottom = Math.max(span.bottom, below.bottom);
  }
  return span;
}

function placeBelow(branch: Branch, card: PlacedNode, arrangement: Arrangement, sizes: Sizes, layout: Layout): number {
  const y = card.y + sizes.cardHeight + sizes.gapY;
  const cards: PlacedNode[] = [];
  let right = card.x - sizes.gapX;
  for (const child of branch.children) {
    const span = place(child, right + sizes.gapX, y, arrangement, sizes, layout);
    right = span.right;
    cards.push(span.card);
  }
  const [first, last] = [cards[0], cards.at(-1)];
  if (first && last) card.x = (first.x + last.x) / 2;
  for (const child of cards) layout.edges.push({ from: branch.node.name, to: child.node.name, ...curve(card, child, sizes) });
  return right;
}

type Line = Pick<Edge, "path" | "points">;
const CURVE_STEPS = 12;

/** From the bottom centre of a card, in an S to the top centre of another. */
function curve(from: PlacedNode, to: PlacedNode, sizes: Sizes): Line {
  const [x1, y1] = [from.x + sizes.cardWidth / 2, from.y + sizes.cardHeight];
  const [x2, y2] = [to.x + sizes.cardWidth / 2, to.y];
  const middle = (y1 + y2) / 2;
  const points = Array.from({ length: CURVE_STEPS + 1 }, (_, step) => {
    const t = step / CURVE_STEPS;
    const share = t * t * (3 - 2 * t);
    // Of the Bézier curve below, whose control points are at the middle's height.
    return { x: x1 + (x2 - x1) * share, y: y1 * (1 - t) ** 3 + 3 * middle * t * (1 - t) + y2 * t ** 3 };
  });
  return { path: `M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${y2}`, points };
}

/** Down along the trunk at the left, then right into a hanging card; to a further column first to the right. */
function trunk(from: PlacedNode, to: PlacedNode, sizes: Sizes): Line {
  const start = { x: from.x + sizes.hangIndent / 2, y: from.y + sizes.cardHeight };
  const down = { x: to.x - sizes.hangIndent / 2, y: start.y + sizes.hangGap / 2 };
  const end = { x: to.x, y: to.y + sizes.cardHeight / 2 };
  const points = [start, { x: start.x, y: down.y }, down, { x: down.x, y: end.y }, end];
  return { path: `M${start.x} ${start.y}V${down.y}H${down.x}V${end.y}H${end.x}`, points };
}

/** The place on a line after that share (0 to 1) of its length. */
export function along(points: Point[], share: number): Point {
  const lengths = points.slice(1).map((point, index) => Math.hypot(point.x - points[index]!.x, point.y - points[index]!.y));
  let left = share * lengths.reduce((sum, length) => sum + length, 0);
  for (const [index, length] of lengths.entries()) {
    const [from, to] = [points[index]!, points[index + 1]!];
    if (left <= length && length > 0) return { x: from.x + ((to.x - from.x) * left) / length, y: from.y + ((to.y - from.y) * left) / length };
    left -= length;
  }
  return points.at(-1) ?? { x: 0, y: 0 };
}
