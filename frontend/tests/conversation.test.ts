import { beforeEach, describe, expect, it, vi } from "vitest";
import { ComposerStore, tooLong } from "../src/chat/composer.svelte";
import { OpenConversation } from "../src/chat/conversation.svelte";
import { attachmentsOf, keepAttachments, keepDraft, keepQueue, queueOf, type QueuedMessage } from "../src/chat/drafts";
import { ApiError, api } from "../src/lib/api";
import { events, type ConversationHandler } from "../src/lib/events";
import { notify } from "../src/lib/offline";
import { toasts } from "../src/lib/toasts.svelte";
import type { Conversation } from "../src/lib/types";
import { conversation, message, turn } from "./messages";
import { PATIENCE } from "./patience";

vi.mock("../src/lib/offline", () => ({ notify: vi.fn(() => Promise.resolve()) }));

const file = { name: "notes.txt", text: "oak" };

let handler: ConversationHandler;
let chat: OpenConversation;

async function opened(stored: Conversation): Promise<OpenConversation> {
  vi.spyOn(api, "conversation").mockImplementation(() => Promise.resolve(structuredClone(stored)));
  await chat.open(stored.id);
  return chat;
}

const shown = (): string[] => chat.branch.map(({ id }) => id);

beforeEach(() => {
  vi.restoreAllMocks();
  toasts.clear();
  vi.spyOn(events, "subscribe").mockImplementation((_id, given) => {
    handler = given;
    return () => {};
  });
  chat = new OpenConversation({ model: () => "tiny", secondModel: () => null, preset: () => null, created: () => {} });
});

describe("OpenConversation", () => {
  it("sends after the branch that is shown, and says which head it saw", async () => {
    const send = vi.spyOn(api, "send").mockResolvedValue(turn(message(3, 2), message(4, 3, { status: "streaming", content: "" })));
    await opened(conversation([message(1, null), message(2, 1)]));
    expect(await chat.send("more")).toBe(true);
    expect(send).toHaveBeenCalledWith("7", { content: "more", attachments: [], model: "tiny", head: "2" });
    expect(shown()).toEqual(["1", "2", "3", "4"]);
    expect(chat.running.map(({ id }) => id)).toEqual(["4"]);
  });

  it("marks what the model saw of an answer that ended before it could be followed", async () => {
    await opened(conversation([message(1, null), message(2, 1)]));
    handler.onMessage(message(3, 2));
    handler.onMessage(message(4, 3), "3");
    expect(chat.seenFrom).toBe("3");
    handler.onMessage(message(2, 1), null); // an earlier answer that changed, as by a thumb
    expect(chat.seenFrom).toBe("3");
  });

  it("tells of an answer that took long, and of no other", async () => {
    await opened(conversation([message(1, null)]));
    handler.onEnd(message(2, 1, { created: new Date().toISOString() }), null);
    expect(notify).not.toHaveBeenCalled();
    handler.onEnd(message(2, 1), null);
    expect(notify).toHaveBeenCalledExactlyOnceWith(chat.current?.title, "text 2", "/c/7");
  });

  it("takes messages from the stream before the response names them, once", async () => {
    vi.spyOn(api, "send").mockImplementation(() => {
      handler.onMessage(message(3, 2));
      handler.onMessage(message(4, 3, { status: "streaming", content: "" }));
      handler.onDelta({ message: "4", offset: 0, text: "so far" });
      return Promise.resolve(turn(message(3, 2), message(4, 3, { status: "streaming", content: "" })));
    });
    await opened(conversation([message(1, null), message(2, 1)]));
    await chat.send("more");
    expect(shown()).toEqual(["1", "2", "3", "4"]);
    expect(chat.branch.at(-1)?.content).toBe("so far");
  });

  it("believes the stream more than a response that is older", async () => {
    await opened(conversation([message(1, null), message(2, 1, { status: "failed", error: "x" })]));
    vi.spyOn(api, "continueAnswer").mockImplementation(() => {
      handler.onMessage(message(2, 1, { status: "failed", error: "again" }));
      return Promise.resolve(turn(message(1, null), message(2, 1, { status: "streaming" })));
    });
    await chat.resume(chat.branch[1]!);
    expect(chat.branch[1]).toMatchObject({ status: "failed", error: "again" });
    vi.spyOn(api, "continueAnswer").mockResolvedValue(turn(message(1, null), message(2, 1, { status: "streaming" })));
    await chat.resume(chat.branch[1]!);
    expect(chat.branch[1]).toMatchObject({ status: "streaming", error: null });
  });

  it("begins a branch with an edit, and shows the former one again", async () => {
    const send = vi.spyOn(api, "send").mockResolvedValue(turn(message(5, 2), message(6, 5)));
    await opened(conversation([1, 2, 3, 4].map((id) => message(id, id === 1 ? null : id - 1))));
    await chat.edit(chat.branch[2]!, "another", [file]);
    expect(send).toHaveBeenCalledWith("7", { content: "another", attachments: [file], model: "tiny", parent: "2" });
    expect(shown()).toEqual(["1", "2", "5", "6"]);
    expect(chat.versions(chat.branch[2]!).map(({ id }) => id)).toEqual(["3", "5"]);
    const change = vi.spyOn(api, "updateConversation").mockResolvedValue({ ...conversation([]), seen_from: "3" });
    await chat.switchTo(chat.versions(chat.branch[2]!)[0]!);
    expect(change).toHaveBeenCalledWith("7", { head: "4" });
    expect([shown(), chat.seenFrom]).toEqual([["1", "2", "3", "4"], "3"]);
  });

  it("goes back to the branch before if the server does not switch", async () => {
    await opened(conversation([message(1, null), message(2, 1), message(4, 1)]));
    vi.spyOn(api, "updateConversation").mockRejectedValue(new ApiError(503, "away"));
    await chat.switchTo(chat.versions(chat.branch[1]!)[0]!);
    expect(shown()).toEqual(["1", "4"]);
  });

  it("follows what another tab adds, edits and shows", async () => {
    await opened(conversation([message(1, null), message(2, 1)]));
    handler.onMessage(message(3, null));
    handler.onMessage(message(4, 3, { status: "streaming", content: "" }));
    expect(shown()).toEqual(["3", "4"]);
    chat.onSummary({ ...conversation([]), head: "2" });
    expect(shown()).toEqual(["1", "2"]);
    chat.onSummary({ ...conversation([]), head: "99" }); // not loaded yet
    expect(shown()).toEqual(["1", "2"]);
  });

  it("shows waiting, the node, and a move to another one", async () => {
    await opened(conversation([message(1, null), message(2, 1, { status: "streaming", content: "" })]));
    const answer = chat.branch[1]!;
    handler.onWaiting({ message: "2", reason: "busy", code: "busy", slots: 4, position: 3, seconds: null });
    expect(answer.waiting).toMatchObject({ code: "busy", slots: 4, position: 3, startsAt: null });
    handler.onStart?.({ message: "2", node: "n1", trail: [{ node: "n1", wait_ms: 5 }] });
    expect([answer.waiting, answer.node, answer.moved]).toEqual([null, "n1", 0]);
    handler.onDelta({ message: "2", offset: 0, text: "one" });
    handler.onStart?.({ message: "2", node: "n2" });
    expect([answer.node, answer.moved]).toEqual(["n2", 1]);
    handler.onEnd(message(2, 1, { content: "one two", node: "n2", moved: 1 }), "1");
    expect([answer.status, answer.content]).toEqual(["done", "one two"]);
  });

  it("loads again when something was missed, and keeps what is drawn", async () => {
    await opened(conversation([message(1, null), message(2, 1)]));
    const before = chat.branch[1];
    await opened(conversation([message(1, null), message(2, 1), message(3, 2), message(4, 3)]));
    handler.onReady("v1");
    expect(api.conversation).toHaveBeenCalledTimes(1);
    handler.onReady("v2");
    await vi.waitFor(() => expect(shown()).toEqual(["1", "2", "3", "4"]), PATIENCE);
    expect(chat.branch[1]).toBe(before);
  });

  it("does not believe a load that began before a message was sent", async () => {
    await opened(conversation([message(1, null), message(2, 1)]));
    let answer = (_: Conversation): void => {};
    const load = vi.spyOn(api, "conversation");
    load.mockImplementationOnce(() => new Promise((resolve) => (answer = resolve)));
    handler.onResync();
    vi.spyOn(api, "send").mockResolvedValue(turn(message(3, 2), message(4, 3)));
    await chat.send("more");
    load.mockResolvedValue(conversation([1, 2, 3, 4].map((id) => message(id, id === 1 ? null : id - 1))));
    answer(conversation([message(1, null), message(2, 1)]));
    await vi.waitFor(() => expect(load).toHaveBeenCalledTimes(3), PATIENCE);
    await vi.waitFor(() => expect(shown()).toEqual(["1", "2", "3", "4"]), PATIENCE);
  });

  it("keeps the text of a stale view, says so, and loads what is new", async () => {
    await opened(conversation([message(1, null), message(2, 1)]));
    vi.spyOn(api, "send").mockRejectedValue(new ApiError(409, "changed", "head", "stale_view"));
    vi.spyOn(api, "conversation").mockResolvedValue(conversation([1, 2, 3, 4].map((id) => message(id, id === 1 ? null : id - 1))));
    expect(await chat.send("more")).toBe(false);
    expect(toasts.list[0]?.text).toBe("changed");
    expect(shown()).toEqual(["1", "2", "3", "4"]);
  });
});

describe("two answers side by side", () => {
  const left = message(4, 3, { status: "streaming", content: "" });
  const right = message(5, 3, { role: "assistant", model: "big", status: "streaming", content: "", beside: "4" });

  async function compared(): Promise<void> {
    chat = new OpenConversation({ model: () => "tiny", secondModel: () => "big", preset: () => null, created: () => {} });
    vi.spyOn(api, "send").mockResolvedValue(turn(message(3, 2), { ...left }));
    await opened(conversation([message(1, null), message(2, 1)]));
  }

  it("asks both models, shows the first one's branch, and stops both", async () => {
    await compared();
    const again = vi.spyOn(api, "regenerate").mockResolvedValue(turn(message(3, 2), { ...right }));
    expect(await chat.send("which")).toBe(true);
    expect(again).toHaveBeenCalledWith("7", "4", "big", true);
    expect([shown(), chat.comparison?.left.id, chat.comparison?.right.id]).toEqual([["1", "2", "3", "4"], "4", "5"]);
    const stop = vi.spyOn(api, "stop").mockResolvedValue(new Response());
    await chat.stop([chat.comparison!.right]);
    expect(stop.mock.calls).toEqual([["7", "5"]]);
    await chat.stop();
    expect(stop.mock.calls.slice(1)).toEqual([["7", "4"]]);
  });

  it("asks both again when the question is edited", async () => {
    await compared();
    const again = vi.spyOn(api, "regenerate").mockResolvedValue(turn(message(3, 2), { ...right }));
    await chat.edit(chat.branch[0]!, "which then", []);
    expect(again).toHaveBeenCalledWith("7", "4", "big", true);
  });

  it("ends with the one that is kept; the other stays a version", async () => {
    await opened(conversation([message(1, null), message(2, 1), message(3, 1, { role: "assistant", beside: "2" })], { head: "2" }));
    expect(chat.comparison?.right.id).toBe("3");
    const change = vi.spyOn(api, "updateConversation").mockRejectedValueOnce(new ApiError(503, "away"));
    await chat.switchTo(chat.comparison!.right);
    expect([shown(), chat.comparison?.right.id]).toEqual([["1", "2"], "3"]);
    change.mockResolvedValue({ ...conversation([]), seen_from: null });
    await chat.switchTo(chat.comparison!.right);
    expect(change).toHaveBeenLastCalledWith("7", { head: "3" });
    expect([shown(), chat.comparison]).toEqual([["1", "3"], null]);
    expect(chat.versions(chat.branch[1]!).map(({ id }) => id)).toEqual(["2", "3"]);
  });

  it("says why the second one is refused in its place, and asks again", async () => {
    await compared();
    const again = vi.spyOn(api, "regenerate").mockRejectedValueOnce(new ApiError(429, "Too many at once."));
    expect(await chat.send("which")).toBe(true);
    expect(chat.refused).toEqual({ beside: "4", model: "big", problem: "Too many at once." });
    expect([toasts.list, chat.running.map(({ id }) => id)]).toEqual([[], ["4"]]);
    again.mockResolvedValue(turn(message(3, 2), { ...right }));
    await chat.compare("4", "big");
    expect([chat.refused, chat.comparison?.right.id]).toEqual([null, "5"]);
  });

  it("is the same in another tab, whichever answer comes last", async () => {
    await opened(conversation([message(1, null), message(2, 1)]));
    for (const each of [message(3, 2), left, right]) handler.onMessage({ ...each });
    expect([shown(), chat.comparison?.right.id]).toEqual([["1", "2", "3", "4"], "5"]);
    handler.onMessage({ ...right, beside: null });
    expect(chat.comparison).toBeNull();
  });

  it("is over when the dialogue has gone on", async () => {
    await opened(conversation([message(1, null), message(2, 1), message(3, 1, { role: "assistant", beside: "2" }), message(5, 2)], { head: "5" }));
    expect(chat.comparison).toBeNull();
  });
});

const texts = (queue: QueuedMessage[]): string[] => queue.map(({ text }) => text);

describe("ComposerStore", () => {
  it("sends files with the message, keeps them until then, and with a message that waits", async () => {
    await opened(conversation([message(1, null), message(2, 1)]));
    const send = vi.spyOn(api, "send").mockResolvedValue(turn(message(3, 2), message(4, 3, { status: "streaming" })));
    const composer = new ComposerStore(chat);
    composer.open("7");
    expect(composer.ready).toBe(false);
    composer.setAttachments([file]);
    composer.open("8");
    expect(composer.attachments).toEqual([]);
    composer.open("7");
    expect([composer.attachments, composer.ready]).toEqual([[file], true]);
    await composer.submit();
    expect(send.mock.calls[0]?.[1]).toMatchObject({ content: "", attachments: [file] });
    expect([composer.attachments, attachmentsOf("7")]).toEqual([[], []]);
    composer.setAttachments([file]);
    await composer.submit();
    expect([composer.queue, composer.attachments]).toEqual([[{ text: "", attachments: [file], after: "4" }], []]);
    composer.takeBack(0);
    expect(composer.attachments).toEqual([file]);
    composer.setAttachments([]);
  });

  it("sends a file that was still being read, and keeps it where it was chosen", async () => {
    chat = await opened(conversation([message(1, null), message(2, 1)]));
    const send = vi.spyOn(chat, "send").mockResolvedValue(true);
    const composer = new ComposerStore(chat);
    composer.open("7");
    composer.set("about trees");
    void composer.attach([new File(["oak"], "notes.txt")]);
    void composer.attach([new File(["fir"], "more.txt")]);
    await composer.submit();
    expect(send).toHaveBeenCalledExactlyOnceWith("about trees", [file, { name: "more.txt", text: "fir" }]);
    send.mockClear();
    composer.set("for the other one");
    const reading = composer.attach([new File(["oak"], "notes.txt")]);
    const sending = composer.submit();
    composer.open("8");
    composer.set("another text");
    await Promise.all([reading, sending]);
    expect([attachmentsOf("7").at(-1), composer.attachments, send.mock.calls]).toEqual([file, [], []]);
    keepDraft("7", "");
    keepDraft("8", "");
    keepAttachments("7", []);
  });

  it("attaches what is pasted and long, unless it is too long for a message", async () => {
    const composer = new ComposerStore(chat);
    composer.open(null);
    expect(composer.attachPasted("short")).toBe(false);
    expect(composer.attachPasted("x".repeat(100_001))).toBe(false);
    expect(composer.attachPasted("y".repeat(2000))).toBe(true);
    await vi.waitFor(() => expect(composer.attachments.map(({ name }) => name)).toEqual(["Pasted text.txt"]), PATIENCE);
    composer.set("x".repeat(99_000));
    expect([composer.excess, composer.ready]).toEqual([101_000, false]);
    composer.set("");
    composer.setAttachments([]);
  });

  it("queues what is written while an answer runs, and sends it afterwards in order", async () => {
    keepQueue("7", []);
    keepDraft("7", "");
    await opened(conversation([message(1, null), message(2, 1, { status: "streaming", content: "" })]));
    const composer = new ComposerStore(chat);
    composer.open("7");
    for (const text of ["one", "two"]) {
      composer.set(text);
      await composer.submit();
    }
    expect([texts(composer.queue), composer.text]).toEqual([["one", "two"], ""]);
    composer.set("a draft");
    await composer.sendNext(); // too early
    expect(texts(queueOf("7"))).toEqual(["one", "two"]);
    handler.onEnd(message(2, 1), null);
    const send = vi.spyOn(api, "send").mockResolvedValue(turn(message(3, 2), message(4, 3)));
    await composer.sendNext();
    expect(send.mock.calls[0]?.[1]).toMatchObject({ content: "one", head: "2" });
    expect([texts(composer.queue), composer.text, texts(queueOf("7"))]).toEqual([["two"], "a draft", ["two"]]);
    send.mockRejectedValue(new ApiError(503, "away"));
    await composer.sendNext();
    expect(texts(queueOf("7"))).toEqual(["two"]);
    composer.takeBack(0);
    expect([composer.text, composer.queue]).toEqual(["two\n\na draft", []]);
  });

  it("says nothing of a queued message that another tab has sent, and keeps one that must wait", async () => {
    keepQueue("7", [{ text: "one", attachments: [], after: null }]);
    await opened(conversation([message(1, null), message(2, 1)]));
    const composer = new ComposerStore(chat);
    composer.open("7");
    vi.spyOn(api, "send").mockRejectedValue(new ApiError(409, "changed", "head", "stale_view"));
    const sentElsewhere = [message(1, null), message(2, 1), message(3, 2, { content: "one" }), message(4, 3)];
    vi.spyOn(api, "conversation").mockResolvedValue(conversation(sentElsewhere));
    await composer.sendNext();
    expect([shown(), queueOf("7"), toasts.list]).toEqual([["1", "2", "3", "4"], [], []]);

    keepQueue("7", [{ text: "two", attachments: [], after: null }]);
    const another = [...sentElsewhere, message(5, 4, { content: "of a phone" }), message(6, 5, { status: "streaming" })];
    vi.spyOn(api, "conversation").mockResolvedValue(conversation(another));
    await composer.sendNext();
    expect([texts(queueOf("7")), toasts.list]).toEqual([["two"], []]);
    keepQueue("7", []);
  });

  it("does not send again what another tab has sent, when that is answered already", async () => {
    const after = (id: string) => keepQueue("7", [{ text: "one", attachments: [], after: id }]);
    after("2");
    await opened(conversation([message(1, null), message(2, 1), message(3, 2, { content: "one" }), message(4, 3)]));
    const composer = new ComposerStore(chat);
    composer.open("7");
    const send = vi.spyOn(api, "send").mockResolvedValue(turn(message(5, 4), message(6, 5)));
    await composer.sendNext();
    expect([send.mock.calls.length, queueOf("7")]).toEqual([0, []]);
    after("4"); // the same words once more
    await composer.sendNext();
    expect([send.mock.calls.length, queueOf("7")]).toEqual([1, []]);
  });

  it("knows an answer that was to go on and fills the context", async () => {
    const cut = message(2, 1, { finish_reason: "length" });
    await opened(conversation([message(1, null), cut]));
    vi.spyOn(api, "continueAnswer").mockResolvedValue(turn(message(1, null), message(2, 1, { status: "streaming" })));
    await chat.resume(chat.branch[1]!);
    handler.onEnd({ ...cut, content: "text 2 and more" }, null);
    expect(chat.branch[1]?.full).toBe(false);
    await chat.resume(chat.branch[1]!);
    handler.onEnd({ ...cut, content: "text 2 and more" }, null);
    expect(chat.branch[1]?.full).toBe(true);
  });

  it("counts characters as people do, and sends nothing that is too long", async () => {
    expect([tooLong("x".repeat(100_000)), tooLong("🌳".repeat(100_000)), tooLong("x".repeat(100_001))]).toEqual([null, null, 100_001]);
    await opened(conversation([message(1, null), message(2, 1)]));
    const send = vi.spyOn(api, "send");
    const composer = new ComposerStore(chat);
    composer.open("7");
    composer.set("x".repeat(120_000));
    await composer.submit();
    expect([composer.excess, composer.ready]).toEqual([120_000, false]);
    expect(send).not.toHaveBeenCalled();
    composer.set("");
  });
});
