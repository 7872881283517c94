import { describe, expect, it } from "vitest";
import { inOrder, placed, sectionOf, without } from "../src/chat/listing";
import type { ConversationSummary } from "../src/lib/types";
import { pieces } from "../src/sidebar/marked";

const entry = (id: number, minute: number, fields: Partial<ConversationSummary> = {}): ConversationSummary => ({
  id: String(id),
  title: `t${id}`,
  model: null,
  updated: `2026-01-01T00:${String(minute).padStart(2, "0")}:00Z`,
  head: null,
  pinned: false,
  archived: false,
  folder: "",
  running: false,
  temporary: false,
  ...fields,
});

describe("the list", () => {
  it("has pinned ones first, then the newest, then the higher id", () => {
    const items = [entry(1, 5), entry(2, 9), entry(10, 5), entry(3, 1, { pinned: true })];
    expect(items.toSorted(inOrder).map(({ id }) => id)).toEqual(["3", "2", "10", "1"]);
  });

  it("takes a changed conversation to its new place", () => {
    const items = [entry(3, 9), entry(2, 5), entry(1, 1)];
    expect(placed(items, entry(1, 12)).map(({ id }) => id)).toEqual(["1", "3", "2"]);
    expect(placed(items, entry(4, 0)).map(({ id }) => id)).toEqual(["3", "2", "1", "4"]);
    expect(without(items, "2").map(({ id }) => id)).toEqual(["3", "1"]);
  });

  it("has a part for each folder and for the archive", () => {
    expect(sectionOf(entry(1, 1))).toBe("main");
    expect(sectionOf(entry(1, 1, { folder: "archived" }))).toBe("folder:archived");
    expect(sectionOf(entry(1, 1, { folder: "F", archived: true }))).toBe("archived");
  });
});

describe("pieces", () => {
  it("cuts a snippet at its marks, and ignores wrong ones", () => {
    const marked = (marks: [number, number][]) => pieces({ text: "an oak", marks }).map(({ text, marked }) => (marked ? `[${text}]` : text));
    expect(marked([[3, 6]])).toEqual(["an ", "[oak]"]);
    expect(marked([[0, 2], [1, 3], [9, 12], [3, 3]])).toEqual(["[an]", " oak"]);
    expect(marked([])).toEqual(["an oak"]);
  });
});
