import { describe, expect, it } from "vitest";
import { type Layout, SIZES, forest, layoutForest, outline } from "../src/tree/layout";
import type { TreeNode } from "../src/lib/types";

const blank: TreeNode = {
  name: "",
  parent: null,
  children: [],
  model: "m",
  engine: "echo",
  device: "",
  state: "idle",
  slots: 1,
  running: 0,
  queued: 0,
  held: 0,
  depth: 0,
  received: 0,
  finished: 0,
  tokens: 0,
  host: "h",
  pid: 1,
  waited: 0,
  wait_error: 0,
  prompt_tokens: 0,
  reused_tokens: 0,
  uptime: 1,
  detail: "",
  policy: "",
  seen: 0,
  warning: "",
  clock_difference: 0,
};

const node = (name: string, parent: string | null, children: string[] = []): TreeNode => ({ ...blank, name, parent, children });

/** A tree of `size` nodes, each with up to `fanout` children, the root being n0. */
function tree(size: number, fanout: number): TreeNode[] {
  return Array.from({ length: size }, (_, index) => {
    const children = Array.from({ length: fanout }, (_, k) => index * fanout + k + 1).filter((child) => child < size);
    return node(
      `n${index}`,
      index === 0 ? null : `n${Math.floor((index - 1) / fanout)}`,
      children.map((child) => `n${child}`),
    );
  });
}

function overlaps({ nodes }: Layout): string[] {
  return nodes.flatMap((a, index) =>
    nodes
      .slice(index + 1)
      .filter((b) => Math.abs(a.x - b.x) < SIZES.cardWidth && Math.abs(a.y - b.y) < SIZES.cardHeight)
      .map((b) => `${a.node.name}/${b.node.name}`),
  );
}

describe("layoutForest", () => {
  for (const fanout of [1, 2, 3, 8]) {
    for (const size of [1, 2, 7, 31, 63]) {
      it.each([400, 1200, 1e6])(`places ${size} nodes of fanout ${fanout} without overlap within %i px`, (maxWidth) => {
        const layout = layoutForest(forest(tree(size, fanout), ["n0"]), maxWidth);
        expect(layout.nodes).toHaveLength(size);
        expect(layout.edges).toHaveLength(size - 1);
        expect(overlaps(layout)).toEqual([]);
        for (const { x, y } of layout.nodes) {
          expect(x).toBeGreaterThanOrEqual(0);
          expect(y).toBeGreaterThanOrEqual(0);
          expect(x + SIZES.cardWidth).toBeLessThanOrEqual(layout.width);
          expect(y + SIZES.cardHeight).toBeLessThanOrEqual(layout.height);
        }
      });
    }
  }

  it("centres parents and hangs leaves only when room is short", () => {
    const branches = forest(tree(7, 2), ["n0"]);
    const wide = layoutForest(branches, 1e6);
    const narrow = layoutForest(branches, 600);
    expect(wide.nodes[0]?.x).toBe((wide.width - SIZES.cardWidth) / 2);
    expect(narrow.width).toBeLessThan(wide.width * 0.6);
    expect(narrow.height).toBeGreaterThan(wide.height);
  });

  it("lays out nothing", () => {
    expect(layoutForest(forest([], []), 1000)).toEqual({ width: 0, height: 0, nodes: [], edges: [] });
  });
});

describe("forest", () => {
  const names = (nodes: TreeNode[], roots: string[]) => forest(nodes, roots).map((branch) => branch.node.name);

  it("shows several roots in their order, then nodes whose parent is missing", () => {
    const nodes = [node("lost", "gone"), node("b", null), node("a", null)];
    expect(names(nodes, ["a", "b"])).toEqual(["a", "b", "lost"]);
    expect(forest(nodes, ["a", "b"]).map((branch) => branch.orphan)).toEqual([false, false, true]);
  });

  it("orders children as their parent does, then by number", () => {
    const nodes = [node("r", null, ["n3"]), node("n10", "r"), node("n2", "r"), node("n3", "r")];
    expect(outline(forest(nodes, ["r"])).map((row) => row.node.name)).toEqual(["r", "n3", "n2", "n10"]);
  });

  it("shows every node of a cycle once", () => {
    const rows = outline(forest([node("a", "b"), node("b", "a"), node("self", "self")], []));
    expect(rows.map((row) => row.node.name).sort()).toEqual(["a", "b", "self"]);
  });
});
