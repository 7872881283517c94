import { describe, expect, it } from "vitest";
import { answerEvents, seenFrom, waitWords, type ShownMessage } from "../src/chat/answer";
import { draftOf, keepDraft } from "../src/chat/drafts";

const message = (content = ""): ShownMessage => ({
  id: "1",
  role: "assistant",
  content,
  status: "streaming",
  error: null,
  created: "2026-01-01T00:00:00Z",
  finish_reason: null,
});

const event = (name: string, data: unknown) => ({ event: name, data: JSON.stringify(data) });

describe("seenFrom", () => {
  const conversation = (seen_from: string | null) => ({
    messages: ["1", "2", "3", "4"].map((id) => ({ ...message(), id })),
    seen_from,
  });

  it("is what the conversation said until an answer ends while it is open", () => {
    const shown = conversation("3");
    expect(seenFrom(shown)).toBe("3");
    const take = answerEvents(shown.messages[3]!);
    take(event("delta", { text: "x" }));
    expect(seenFrom(shown)).toBe("3");
    take(event("done", { finish_reason: "stop", seen_from: 2 })); // as the server writes ids
    expect(seenFrom(shown)).toBe("2");
    take(event("done", { finish_reason: "stop", seen_from: null }));
    expect(seenFrom(shown)).toBe(null);
  });

  it("stays where it was when an answer is stopped, as nobody knows what the model saw", () => {
    const shown = conversation("3");
    answerEvents(shown.messages[3]!)(event("done", { finish_reason: "cancelled", seen_from: null }));
    expect(seenFrom(shown)).toBe("3");
  });

  it("is nothing worth a line at the first message", () => {
    expect(seenFrom(conversation("1"))).toBe(null);
    expect(seenFrom({ messages: [], seen_from: null })).toBe(null);
  });
});

describe("answerEvents", () => {
  it("appends deltas and ends with done", () => {
    const shown = message();
    const take = answerEvents(shown);
    expect(take(event("waiting", { reason: "Two before you." }))).toBe(true);
    expect(shown.waiting).toEqual({ reason: "Two before you.", position: null, seconds: null });
    take(event("waiting", { reason: "every slot is busy", position: 12, seconds: 31.2, job_class: "interactive" }));
    expect(shown.waiting).toEqual({ reason: "every slot is busy", position: 12, seconds: 31.2 });
    take(event("delta", { text: "Hel" }));
    take(event("delta", { text: "lo" }));
    expect([shown.content, shown.waiting]).toEqual(["Hello", null]);
    expect(take(event("done", { finish_reason: "stop", completion_tokens: 2 }))).toBe(false);
    expect([shown.status, shown.finish_reason]).toEqual(["done", "stop"]);
  });

  it("starts anew with each connection, so nothing is shown twice", () => {
    const shown = message("Hello wor");
    const take = answerEvents(shown);
    take(event("delta", { text: "Hello world" }));
    take(event("delta", { text: "!" }));
    expect(shown.content).toBe("Hello world!");
  });

  it("shows no less while the server writes again what a restart cost it", () => {
    const shown = message("one two thr");
    const take = answerEvents(shown);
    const seen = ["one", " two", " three"].map((text) => (take(event("delta", { text })), shown.content));
    expect(seen).toEqual(["one two thr", "one two thr", "one two three"]);
  });

  it("believes the server where its text is another, or ended earlier", () => {
    const other = message("one two");
    answerEvents(other)(event("delta", { text: "one 2" }));
    expect(other.content).toBe("one 2");
    const shorter = message("one two");
    const take = answerEvents(shorter);
    take(event("delta", { text: "one" }));
    take(event("done", { finish_reason: "cancelled" }));
    expect(shorter).toMatchObject({ content: "one", status: "stopped" });
  });

  it("keeps the text of a failed or stopped answer", () => {
    const failed = message("Half");
    answerEvents(failed)(event("failed", { message: "The node died." }));
    expect(failed).toMatchObject({ content: "Half", status: "failed", error: "The node died." });
    const stopped = message("Half");
    answerEvents(stopped)(event("done", { finish_reason: "cancelled" }));
    expect(stopped).toMatchObject({ content: "Half", status: "stopped" });
  });
});

describe("waitWords", () => {
  const wait = (position: number | null, seconds: number | null) => waitWords({ reason: "every slot is busy", position, seconds });

  it("tell the place and the start first, then the reason", () => {
    expect(wait(12, 31.2)).toEqual({ text: "Number 12 in line, starts in about 30 s", detail: "Every slot is busy" });
  });

  it("say only what is known", () => {
    expect(wait(2, null)).toEqual({ text: "Number 2 in line", detail: "Every slot is busy" });
    expect(wait(null, 0)).toEqual({ text: "Starts in about 1 s", detail: "Every slot is busy" });
    expect(wait(null, null)).toEqual({ text: "Every slot is busy", detail: null });
  });
});

describe("drafts", () => {
  it("are kept apart by conversation", () => {
    keepDraft(null, "new");
    keepDraft("1", "one");
    expect([draftOf(null), draftOf("1"), draftOf("2")]).toEqual(["new", "one", ""]);
    keepDraft("1", "");
    expect(draftOf("1")).toBe("");
  });
});
