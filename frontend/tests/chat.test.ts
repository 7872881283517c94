import { beforeEach, describe, expect, it, vi } from "vitest";
import { isUnfinished, ordinal, placeWords, reasonWords, tokensPerSecond, update, type ShownMessage, type Wait } from "../src/chat/answer";
import { attachmentsOf, draftOf, forgetDraft, hasRoom, keepAttachments, keepDraft, keepQueue, queueOf } from "../src/chat/drafts";
import { SentenceReader } from "../src/chat/sentences";
import { branchTo, isLeaf, newestLeaf, versionsOf } from "../src/chat/tree";
import { timeLeft } from "../src/chat/wait";
import { TextStore } from "../src/lib/textstore";

const message = (fields: Partial<ShownMessage> = {}): ShownMessage => ({
  id: "1",
  parent: null,
  role: "assistant",
  content: "",
  status: "streaming",
  error: null,
  error_code: "",
  created: "2026-01-01T00:00:00Z",
  finish_reason: null,
  model: "tiny",
  node: "",
  prompt_tokens: 0,
  completion_tokens: 0,
  ttft_ms: null,
  seconds: 0,
  moved: 0,
  trail: [],
  ...fields,
});

describe("the tree of messages", () => {
  // 1 - 2 - 3 - 4, an edit of 3 (5 - 6), another answer to 1 (7), an edit of 1 (8)
  const places: [string, string | null][] = [["1", null], ["2", "1"], ["3", "2"], ["4", "3"], ["5", "2"], ["6", "5"], ["7", "1"], ["8", null]];
  const messages = places.map(([id, parent]) => ({ id, parent }));
  const ids = (list: { id: string }[]): string[] => list.map(({ id }) => id);

  it("shows the branch that ends with the head", () => {
    expect(ids(branchTo(messages, "6"))).toEqual(["1", "2", "5", "6"]);
    expect(ids(branchTo(messages, "8"))).toEqual(["8"]);
    expect(branchTo(messages, null)).toEqual([]);
    expect(branchTo(messages, "99")).toEqual([]);
  });

  it("knows the versions of a question and of an answer", () => {
    expect(ids(versionsOf(messages, messages[4]!))).toEqual(["3", "5"]);
    expect(ids(versionsOf(messages, messages[1]!))).toEqual(["2", "7"]);
    expect(ids(versionsOf(messages, messages[7]!))).toEqual(["1", "8"]);
  });

  it("goes on with the newest message at each fork", () => {
    expect(newestLeaf(messages, "1")).toBe("7");
    expect(newestLeaf(messages, "3")).toBe("4");
    expect(newestLeaf(messages, "8")).toBe("8");
    expect([isLeaf(messages, "4"), isLeaf(messages, "2")]).toEqual([true, false]);
  });

  it("ends, whatever it is given", () => {
    const circle = [{ id: "1", parent: "2" }, { id: "2", parent: "1" }];
    expect(ids(branchTo(circle, "2"))).toEqual(["1", "2"]);
    expect(["1", "2"]).toContain(newestLeaf(circle, "1"));
  });
});

describe("update", () => {
  it("never shows less of a running answer than before", () => {
    const shown = message({ content: "one two three" });
    update(shown, message({ content: "one" }));
    expect(shown.content).toBe("one two three");
    update(shown, message({ content: "one two three four" }));
    expect(shown.content).toBe("one two three four");
  });

  it("believes the server where its text is another, or has ended", () => {
    const shown = message({ content: "one two", waiting: wait() });
    update(shown, message({ content: "one 2" }));
    expect(shown.content).toBe("one 2");
    update(shown, message({ content: "one", status: "stopped", node: "n1" }));
    expect(shown).toMatchObject({ content: "one", status: "stopped", node: "n1", waiting: null });
  });
});

function wait(fields: Partial<Wait> = {}): Wait {
  return { reason: "every slot is busy", code: "busy", slots: 16, position: null, startsAt: null, ...fields };
}

describe("the words of a wait", () => {
  it("tell the place and the time, as far as they are known", () => {
    expect(placeWords(wait({ position: 3 }), "smollm2", "12 s", "en")).toBe("3rd in line for smollm2, about 12 s");
    expect(placeWords(wait({ position: 1 }), "smollm2", null, "en")).toBe("1st in line for smollm2");
    expect(placeWords(wait(), "smollm2", "4 s", "en")).toBe("Starts in about 4 s");
    expect(placeWords(wait(), "smollm2", null, "en")).toBe("");
  });

  it("say why", () => {
    expect(reasonWords(wait(), "tiny")).toBe("All 16 slots are taken");
    expect(reasonWords(wait({ slots: 1 }), "tiny")).toBe("The only slot is taken");
    expect(reasonWords(wait({ code: "paused" }), "tiny")).toBe("Every node for tiny is paused. It starts as soon as one resumes.");
    expect(reasonWords(wait({ code: "", reason: "the node n1 is full" }), "tiny")).toBe("The node n1 is full");
  });

  it("count places as English does", () => {
    const counted = [1, 2, 3, 4, 11, 12, 13, 21, 22, 23, 101].map((place) => ordinal(place, "en"));
    expect(counted).toEqual(["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "23rd", "101st"]);
  });

  it("count down by seconds, and never below one", () => {
    const starts = wait({ startsAt: 20_000 });
    expect([0, 500, 19_500, 99_000].map((now) => timeLeft(starts, now))).toEqual(["20 s", "20 s", "1 s", null]);
    expect(timeLeft(wait({ startsAt: 300_000 }), 0)).toBe("5 min");
    expect(timeLeft(wait(), 0)).toBe(null);
  });
});

describe("what an answer took", () => {
  it("is tokens a second after the first one", () => {
    expect(tokensPerSecond(message({ completion_tokens: 101, seconds: 2 }))).toBe(50);
    expect(tokensPerSecond(message({ completion_tokens: 1, seconds: 2 }))).toBe(null);
    expect(tokensPerSecond(message({ completion_tokens: 5, seconds: 0 }))).toBe(null);
  });

  it("can go on if it was stopped, failed or cut", () => {
    expect(isUnfinished(message({ status: "stopped" }))).toBe(true);
    expect(isUnfinished(message({ status: "failed" }))).toBe(true);
    expect(isUnfinished(message({ status: "done", finish_reason: "length" }))).toBe(true);
    expect(isUnfinished(message({ status: "done", finish_reason: "stop" }))).toBe(false);
    expect(isUnfinished(message({ role: "user", status: "done", finish_reason: "length" }))).toBe(false);
  });
});

describe("SentenceReader", () => {
  it("tells whole sentences, each once, and the rest at the end", () => {
    const reader = new SentenceReader();
    expect(reader.read("Oaks are", false)).toBe("");
    expect(reader.read("Oaks are tall. They grow", false)).toBe("Oaks are tall.");
    expect(reader.read("Oaks are tall. They grow", false)).toBe("");
    expect(reader.read("Oaks are tall. They grow slowly", true)).toBe("They grow slowly");
  });

  it("knows sentences of other scripts, and paragraphs without a full stop", () => {
    const reader = new SentenceReader();
    expect(reader.read("树很高。它们", false)).toBe("树很高。");
    expect(reader.read("树很高。它们\n\n- one", false)).toBe("它们");
  });

  it("leaves out marks, and what was there before", () => {
    const reader = new SentenceReader();
    reader.skip("Read already. ");
    expect(reader.read("Read already. **This** is `new`. ", false)).toBe("This is new.");
  });

  it("does not end a sentence in a number", () => {
    expect(new SentenceReader().read("Pi is 3.14 or so", false)).toBe("");
  });
});

describe("drafts and queues", () => {
  it("are kept apart by conversation", () => {
    keepDraft(null, "new");
    keepDraft("1", "one");
    expect([draftOf(null), draftOf("1"), draftOf("2")]).toEqual(["new", "one", ""]);
    keepDraft("1", "");
    expect(draftOf("1")).toBe("");
  });

  it("keep attachments, and tell where a reload would lose them", () => {
    const file = { name: "n", text: "x" };
    expect(keepAttachments("1", [file])).toBe(false); // there is no storage here
    expect([attachmentsOf("1"), attachmentsOf("2")]).toEqual([[file], []]);
    forgetDraft("1");
    expect(attachmentsOf("1")).toEqual([]);
  });

  it("keep what waits to be sent in its order, up to a few", () => {
    const messages = (...texts: string[]) => texts.map((text) => ({ text, attachments: [{ name: "n", text }], after: null }));
    keepQueue("1", messages("a", "b"));
    expect(queueOf("1")).toEqual(messages("a", "b"));
    expect(hasRoom(messages("a", "b"))).toBe(true);
    expect(hasRoom(messages("a", "b", "c", "d", "e"))).toBe(false);
    keepQueue("1", []);
    expect(queueOf("1")).toEqual([]);
  });
});

describe("TextStore", () => {
  let stored = new Map<string, string>();
  const store = { getItem: (key: string) => stored.get(key) ?? null, setItem: (key: string, value: string) => void stored.set(key, value) };
  const open = (bounds = { count: 3, characters: 20 }, delayMs = 0) => new TextStore("k", bounds, delayMs, store);

  beforeEach(() => {
    stored = new Map();
  });

  it("survives a reload", () => {
    open().set("a", "one");
    expect(open().get("a")).toBe("one");
  });

  it("forgets the oldest beyond its bounds, never the newest", () => {
    const texts = open();
    for (const name of ["a", "b", "c", "d"]) texts.set(name, name);
    expect(["a", "b", "c", "d"].map((name) => texts.get(name))).toEqual(["", "b", "c", "d"]);
    texts.set("long", "x".repeat(50));
    expect([texts.get("d"), texts.get("long").length]).toEqual(["", 50]);
  });

  it("reads nothing from what somebody else wrote", () => {
    for (const value of ["{", "5", '{"a":1}', '[["a"],["b",2],7]']) {
      stored.set("k", value);
      expect(open().get("b")).toBe("");
    }
  });

  it("works where nothing can be stored", () => {
    const full = { getItem: () => null, setItem: () => { throw new Error("full"); } };
    const texts = new TextStore("k", { count: 3, characters: 20 }, 0, full);
    texts.set("a", "one");
    expect(texts.get("a")).toBe("one");
  });

  it("stores a text that changes with every key now and then", () => {
    vi.useFakeTimers();
    const texts = open({ count: 3, characters: 20 }, 250);
    texts.set("a", "o");
    texts.set("a", "on");
    expect(stored.size).toBe(0);
    vi.advanceTimersByTime(250);
    expect(open().get("a")).toBe("on");
    vi.useRealTimers();
  });
});
