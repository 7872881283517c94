import { describe, expect, it } from "vitest";
import { COMPACT, FULL, type Layout, type Sizes, along, collapse, fitForest, forest, layoutForest, outline, scaleOf } from "../src/dashboard/tree/layout";
import { neighbour } from "../src/dashboard/tree/steps";
import type { TreeNode } from "../src/lib/types";
import { BLANK } from "./nodes";

const node = (name: string, parent: string | null, children: string[] = []): TreeNode => ({ ...BLANK, name, parent, children });

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

function overlaps({ nodes }: Layout, sizes: Sizes): string[] {
  return nodes.flatMap((a, index) =>
    nodes
      .slice(index + 1)
      .filter((b) => Math.abs(a.x - b.x) < sizes.cardWidth && Math.abs(a.y - b.y) < sizes.cardHeight)
      .map((b) => `${a.node.name}/${b.node.name}`),
  );
}

describe("a layout", () => {
  for (const fanout of [1, 2, 3, 8, 70]) {
    for (const size of [1, 2, 7, 31, 63]) {
      it.each([0, 1, 2, 1e6])(`places ${size} nodes of fanout ${fanout} without overlap, hanging from generation %i`, (hangFrom) => {
        const layout = layoutForest(forest(tree(size, fanout), ["n0"]), COMPACT, { hangFrom, rows: 12 });
        expect(layout.nodes).toHaveLength(size);
        expect(layout.edges).toHaveLength(size - 1);
        expect(overlaps(layout, COMPACT)).toEqual([]);
        for (const { x, y } of layout.nodes) {
          expect(x).toBeGreaterThanOrEqual(0);
          expect(y).toBeGreaterThanOrEqual(0);
          expect(x + COMPACT.cardWidth).toBeLessThanOrEqual(layout.width);
          expect(y + COMPACT.cardHeight).toBeLessThanOrEqual(layout.height);
        }
      });
    }
  }

  it("centres parents and hangs subtrees only when room is short", () => {
    const branches = forest(tree(7, 2), ["n0"]);
    const wide = fitForest(branches, FULL, 2000, 800);
    const narrow = fitForest(branches, FULL, 600, 800);
    expect(wide.nodes[0]?.x).toBe((wide.width - FULL.cardWidth) / 2);
    expect(narrow.width).toBeLessThan(wide.width * 0.6);
    expect(narrow.height).toBeGreaterThan(wide.height);
  });

  it.each([2, 3, 8, 200])("of 200 nodes with fanout %i can be read in a usual window", (fanout) => {
    const layout = fitForest(forest(tree(200, fanout), ["n0"]), COMPACT, 1220, 760);
    expect(scaleOf(layout, 1220, 760)).toBeGreaterThan(0.6);
  });

  it("lays out nothing", () => {
    expect(fitForest(forest([], []), FULL, 1000, 1000)).toEqual({ width: 0, height: 0, nodes: [], edges: [] });
  });

  it("leaves out what is collapsed and says how much that is", () => {
    const [root] = collapse(forest(tree(7, 2), ["n0"]), new Set(["n1"]));
    expect(root?.children.map((branch) => [branch.node.name, branch.hidden, branch.children.length])).toEqual([
      ["n1", 2, 0],
      ["n2", 0, 2],
    ]);
  });

  it("leads from card to card by the arrow keys", () => {
    const layout = layoutForest(forest(tree(7, 2), ["n0"]), FULL);
    const steps = (["ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowUp", "ArrowUp"] as const).reduce<string[]>(
      (way, key) => [...way, neighbour(layout, way.at(-1)!, key, FULL) ?? way.at(-1)!],
      ["n0"],
    );
    expect(steps).toEqual(["n0", "n1", "n3", "n4", "n5", "n2", "n0", "n0"]);
  });
});

it("follows a line to its end", () => {
  const line = [{ x: 0, y: 0 }, { x: 10, y: 0 }, { x: 10, y: 30 }];
  expect([0, 0.25, 0.5, 1].map((share) => along(line, share))).toEqual([{ x: 0, y: 0 }, { x: 10, y: 0 }, { x: 10, y: 10 }, { x: 10, y: 30 }]);
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
