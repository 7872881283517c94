import { describe, expect, it } from "vitest";
import type { NodeState, TreeNode } from "../src/lib/types";
import { possibleAction, totals, trouble } from "../src/tree/states";

function node(state: NodeState, detail = ""): TreeNode {
  return {
    name: state,
    parent: "root",
    children: [],
    model: "m",
    engine: "echo",
    device: "",
    state,
    slots: 4,
    running: 1,
    queued: 2,
    held: 0,
    depth: 2,
    received: 0,
    finished: 0,
    tokens: 0,
    host: "h",
    pid: 1,
    uptime: 1,
    detail,
    policy: "",
    seen: 0,
  };
}

describe("a node that has failed", () => {
  it("says why", () => {
    expect(trouble(node("failed", "out of memory"))).toBe("out of memory");
    expect(trouble(node("failed"))).toBe("its engine has failed");
    expect(trouble(node("starting", "loading"))).toBeNull();
  });

  it("offers no slots", () => {
    const tree = { roots: [], nodes: [node("idle"), node("failed"), node("down")], at: "" };
    expect(totals(tree)).toEqual({ nodes: 2, down: 1, failed: 1, slots: 4, running: 2, queued: 6 });
  });

  it("is left alone", () => {
    expect(possibleAction(node("failed"))).toBeNull();
  });
});
