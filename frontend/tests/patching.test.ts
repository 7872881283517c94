import { expect, it } from "vitest";
import { sorted, turned } from "../src/dashboard/parts/sorting";
import { arrivals, patched, sameShape } from "../src/dashboard/patching";
import { BLANK, treeOf } from "./nodes";

const former = treeOf([
  { ...BLANK, name: "root", children: ["n1", "n2"] },
  { ...BLANK, name: "n1", parent: "root" },
  { ...BLANK, name: "n2", parent: "root" },
]);

it("changes the nodes of a patch and leaves the others the same objects", () => {
  const latest = patched(former, { at: "later", nodes: { n1: { running: 1, received: 3 } } });
  expect(latest.nodes.map((node) => node.running)).toEqual([0, 1, 0]);
  expect([latest.nodes[0] === former.nodes[0], latest.nodes[1] === former.nodes[1], latest.at]).toEqual([true, false, "later"]);
  expect(sameShape(former, latest)).toBe(true);
  expect([...arrivals(former, latest)]).toEqual([["n1", 3]]);
});

it("adds, removes and moves nodes", () => {
  const nodes = { root: { children: ["n3"] }, n3: { ...BLANK, name: "n3", parent: "root" } };
  const latest = patched(former, { at: "later", nodes, order: ["root", "n3"] });
  expect(latest.nodes.map((node) => node.name)).toEqual(["root", "n3"]);
  expect(sameShape(former, latest)).toBe(false);
});

it("sees no jobs move when another process takes a node's name", () => {
  const latest = patched(former, { at: "later", nodes: { n1: { pid: 2, received: 5 } } });
  expect(arrivals(former, latest).size).toBe(0);
});

it("sorts rows by numbers and by names with numbers", () => {
  const rows = ["n10", "n2", "n1"];
  expect(sorted(rows, (row) => row, false)).toEqual(["n1", "n2", "n10"]);
  expect(sorted(rows, (row) => row.length, true)).toEqual(["n10", "n2", "n1"]);
  expect(turned({ key: "a", descending: false }, "a")).toEqual({ key: "a", descending: true });
  expect(turned({ key: "a", descending: false }, "b", true)).toEqual({ key: "b", descending: true });
});
