import { describe, expect, it } from "vitest";
import { serverOf } from "../src/connect/servers";
import { addBase, named, removeBase } from "../src/lib/basePath";

describe("a base path", () => {
  it("is put before our paths, and taken off once", () => {
    expect(["", "/canopy"].map((base) => addBase(base, "/tree/"))).toEqual(["/tree/", "/canopy/tree/"]);
    expect(["/canopy/", "/canopy/canopy/c/1", "/canopyx", "/c/1"].map((path) => removeBase("/canopy", path))).toEqual(["/", "/canopy/c/1", "/canopyx", "/c/1"]);
    expect(removeBase("", "/c/1")).toBe("/c/1");
  });

  it("makes names that instances on one host do not share", () => {
    expect([named("csrftoken", ""), named("csrftoken", "/a/b")]).toEqual(["csrftoken", "csrftoken_a_b"]);
  });

  it("belongs to a server's address, our pages do not", () => {
    expect(["https://a.org/canopy/", "https://a.org/canopy/c/4", "a.org/team/chat/tree/queues"].map(serverOf)).toEqual(["https://a.org/canopy", "https://a.org/canopy", "https://a.org/team/chat"]);
  });
});

/** What would leave the base path: an address that is written into the page, or requested, as it is. */
const SOURCES = import.meta.glob<string>("../src/**/*.{ts,svelte}", { query: "?raw", import: "default", eager: true });
const ESCAPES = [/\b(?:href|src|action)="\//, /\bfetch\(\s*["'`]\//, /\bregister\(["'`]\//, /\blocation\.(?:assign|replace)\(["'`]\//, /\b(?:push|replace)State\(null, "", ["'`]\//, /["'`]\/static\/(?!assets\/|theme\.js|favicon\.svg)[^"'`]*["'`](?!\))/, /\blocation\.pathname\b/];
const MAY = new Set(["lib/router.svelte.ts", "lib/signOn.ts", "main.ts", "pages.ts"]); // they pass it through `ownPath`, or to the server as it is

describe("every address of a page", () => {
  it.each(Object.entries(SOURCES).filter(([name]) => !name.includes("/locales/")))("%s", (name, text) => {
    for (const escape of ESCAPES) {
      if (escape.source.includes("pathname") && MAY.has(name.slice("../src/".length))) continue;
      expect(escape.exec(text)?.[0] ?? null).toBeNull();
    }
  });
});
