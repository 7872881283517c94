import { describe, expect, it, vi } from "vitest";
import { ApiError } from "../src/lib/api";
import { conversationsOf, type ImportedConversation, UnknownFormat } from "../src/transfer/formats";
import { MOST_BYTES, partsOf, upload } from "../src/transfer/upload";

describe("conversationsOf", () => {
  it("reads ChatGPT's tree, without system texts and tools, with both branches", () => {
    const node = (id: string, parent: string | null, role: string, ...parts: unknown[]) => ({
      id,
      parent,
      message: { author: { role }, content: { content_type: "text", parts }, create_time: 1.5, metadata: { model_slug: "gpt-4o" } },
    });
    const mapping = {
      root: { id: "root", parent: null, message: null },
      sys: node("sys", "root", "system", "be kind"),
      a: node("a", "sys", "user", "What is it?", { content_type: "image_asset_pointer" }),
      tool: node("tool", "a", "tool", "…"),
      b: node("b", "tool", "assistant", "An oak."),
      c: node("c", "a", "assistant", "A fir."),
    };
    const [found] = conversationsOf([{ title: "Trees", create_time: 10.5, mapping, current_node: "b" }]);
    expect(found).toMatchObject({ title: "Trees", created: 10.5, head: "b" });
    expect(found?.messages.map(({ id, parent, role, content }) => [id, parent, role, content])).toEqual([
      ["a", null, "user", "What is it?"],
      ["b", "a", "assistant", "An oak."],
      ["c", "a", "assistant", "A fir."],
    ]);
    expect(found?.messages[1]?.model).toBe("gpt-4o");
  });

  it("reads Open WebUI's tree", () => {
    const messages = {
      y: { id: "y", parentId: "x", role: "assistant", content: "Hi!", model: "llama3", timestamp: 12 },
      x: { id: "x", parentId: null, role: "user", content: "Hello", timestamp: 11 },
    };
    const chat = { title: "Greeting", models: ["llama3"], history: { messages, currentId: "y" } };
    const [found] = conversationsOf([{ id: "1", chat, created_at: 10, updated_at: 12, pinned: true }]);
    expect(found).toMatchObject({ title: "Greeting", model: "llama3", created: 10, head: "y", pinned: true });
    expect(found?.messages.map(({ id }) => id)).toEqual(["x", "y"]);
  });

  it("reads what Canopy exports", () => {
    const messages = [
      { id: 1, parent: null, role: "user", content: "one", model: "", created: "2026-01-01T00:00:00Z" },
      { id: 2, parent: 1, role: "assistant", content: "two", model: "tiny", created: "2026-01-01T00:00:01Z" },
    ];
    const file = { format: "canopy", version: 1, conversations: [{ title: "T", head: 2, messages, folder: "F" }] };
    expect(conversationsOf(file)).toMatchObject([{ title: "T", head: "2", folder: "F", messages: [{ id: "1" }, { id: "2", parent: "1" }] }]);
  });

  it("ends in a circle, and refuses what it does not know", () => {
    const turn = (parent: string) => ({ parent, message: { author: { role: "user" }, content: { parts: ["x"] } } });
    const [found] = conversationsOf([{ mapping: { a: turn("b"), b: turn("a") }, current_node: "a" }]);
    expect(found?.messages).toEqual([]);
    for (const file of [null, 5, {}, [], [{}], "text"]) expect(() => conversationsOf(file)).toThrow(UnknownFormat);
  });
});

const conversation = (title: string, content = "x"): ImportedConversation => ({
  title,
  head: null,
  messages: [{ id: "1", parent: null, role: "user", content }],
});

describe("upload", () => {
  const receive = (list: ImportedConversation[]) => Promise.resolve({ conversations: list.length, messages: list.length, known: 0 });

  it("sends parts that fit", () => {
    const half = "x".repeat(MOST_BYTES / 2 - 200);
    const parts = [...partsOf([conversation("a", half), conversation("b", half), conversation("c", half)])];
    expect(parts.map((part) => part.length)).toEqual([2, 1]);
  });

  it("says what came in and what did not", async () => {
    const send = vi.fn((list: ImportedConversation[]) =>
      list.some(({ title }) => title === "bad") ? Promise.reject(new ApiError(400, "No.")) : receive(list),
    );
    const list = [conversation("a"), conversation("bad"), conversation("huge", "x".repeat(MOST_BYTES)), { ...conversation("none"), messages: [] }];
    expect(await upload(list, send, () => {})).toEqual({
      conversations: 1,
      messages: 1,
      known: 0,
      tooLarge: 1,
      empty: 1,
      refused: 1,
      refusal: "No.",
    });
  });
});
