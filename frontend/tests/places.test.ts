import { describe, expect, it } from "vitest";
import { possibleParents } from "../src/dashboard/actions/places";
import { BLANK } from "./nodes";

describe("the places of a node", () => {
  it("are neither joined nodes nor dead ones, itself, or nodes of another model", () => {
    const nodes = [
      { ...BLANK, name: "root", children: ["n1", "n2", "room1", "n3"] },
      { ...BLANK, name: "n1", parent: "root" },
      { ...BLANK, name: "n2", parent: "root" },
      { ...BLANK, name: "room1", parent: "root", joined: true },
      { ...BLANK, name: "n3", parent: "root", state: "down" as const },
      { ...BLANK, name: "other", model: "big" },
    ];
    expect(possibleParents(nodes, "n1")).toEqual(["n2"]);
    expect(possibleParents(nodes, "room1")).toEqual(["n1", "n2"]);
  });
});
