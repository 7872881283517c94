import { describe, expect, it } from "vitest";
import type { NodeState, ShownState, TreeNode } from "../src/lib/types";
import { BLANK } from "./nodes";
import { clock, place, possibleAction, reuse, trouble, waits } from "../src/dashboard/tree/states";

function node(state: NodeState, detail = ""): TreeNode {
  return { ...BLANK, name: state, parent: "root", state, shown: SHOWN[state] ?? "idle", slots: 4, running: 1, queued: 2, depth: 2, detail };
}

const SHOWN: Partial<Record<NodeState, ShownState>> = { failed: "unhealthy", down: "gone" };

describe("a node that has failed", () => {
  it("says why", () => {
    expect(trouble(node("failed", "out of memory"))).toBe("out of memory");
    expect(trouble(node("failed"))).toBe("its engine has failed");
    expect(trouble(node("starting", "loading"))).toBeNull();
  });

  it("is left alone", () => {
    expect(possibleAction(node("failed"))).toBeNull();
  });
});

describe("where a node is", () => {
  it("is not known of one that starts, and nowhere once it is gone", () => {
    expect(place(node("idle"))).toBe("h:1");
    expect(place({ ...node("starting"), host: "" })).toBe("not heard yet");
    expect(place({ ...node("lost"), host: "" })).toBe("no answer");
    expect(place({ ...node("down"), host: "" })).toBe("no process");
  });
});

describe("a node's clock", () => {
  it("is compared with the server's", () => {
    expect(clock({ ...node("busy"), clock_difference: null })).toBeNull();
    expect(clock(node("busy"))).toBe("as the server's");
    expect(clock({ ...node("busy"), clock_difference: 7200 })).toBe("2 h ahead of the server's");
    expect(clock({ ...node("busy"), clock_difference: -1.5 })).toBe("1.5 s behind the server's");
  });

  it("is a trouble when it is far off, and so is what the node warns about", () => {
    expect(trouble({ ...node("busy"), clock_difference: 1.9 })).toBeNull();
    expect(trouble({ ...node("busy"), clock_difference: -7200 })).toBe("its clock is 2 h behind the server's");
    expect(trouble({ ...node("busy"), warning: "x: its counters were ignored" })).toBe("x: its counters were ignored");
  });
});

describe("reuse", () => {
  it("is told where prompts were read", () => {
    expect(reuse(node("busy"))).toBeNull();
    expect(reuse({ ...node("busy"), prompt_tokens: 1000, reused_tokens: 436 })).toBe("44 % of 1000 tokens held already");
  });
});

describe("waits", () => {
  it("are told where jobs have waited", () => {
    expect(waits(node("busy"))).toBeNull();
    expect(waits({ ...node("busy"), waited: 4.53, wait_error: 0.49 })).toBe("4.5 s on average, estimates off by 0.5 s");
    expect(waits({ ...node("busy"), waited: 75, wait_error: 0 })).toBe("1 min 15 s on average, estimates off by 0 s");
  });
});
