// @vitest-environment jsdom
/** What happens while a request is on its way: its result belongs to what it was made for. */
import { beforeEach, describe, expect, it, vi } from "vitest";
import { ComposerStore } from "../src/chat/composer.svelte";
import { OpenConversation } from "../src/chat/conversation.svelte";
import { ConversationList } from "../src/chat/conversations.svelte";
import { attachmentsOf, keepAttachments, keepDraft, keepQueue, queueOf } from "../src/chat/drafts";
import { ApiError, api } from "../src/lib/api";
import { events } from "../src/lib/events";
import { toasts } from "../src/lib/toasts.svelte";
import type { Conversation, ConversationPage, ConversationSummary, Turn } from "../src/lib/types";
import { later } from "./later";
import { conversation, message, turn } from "./messages";
import { PATIENCE } from "./patience";

const first = conversation([message(1, null), message(2, 1)]);
const other = conversation([message(11, null), message(12, 11)], { id: "8" });

let chat: OpenConversation;
let second: string | null;
const created = vi.fn();

beforeEach(() => {
  vi.restoreAllMocks();
  created.mockReset();
  toasts.clear();
  second = null;
  vi.spyOn(events, "subscribe").mockReturnValue(() => {});
  vi.spyOn(api, "conversation").mockImplementation((id) => Promise.resolve(structuredClone(id === "8" ? other : first)));
  chat = new OpenConversation({ model: () => "tiny", secondModel: () => second, preset: () => null, created });
});

const shown = (): string[] => chat.branch.map(({ id }) => id);

describe("a conversation that is left while its message is sent", () => {
  it("keeps the other one as it is", async () => {
    const answer = later<Turn>();
    vi.spyOn(api, "send").mockReturnValue(answer.promise);
    await chat.open("7");
    const sending = chat.send("more");
    await chat.open("8");
    answer.resolve(turn(message(3, 2), message(4, 3)));
    expect(await sending).toBe(true);
    expect([chat.id, shown(), chat.current?.head]).toEqual(["8", ["11", "12"], "12"]);
  });

  it("is compared all the same, and a refusal is not said beside another conversation's answer", async () => {
    second = "big";
    const answer = later<Turn>();
    vi.spyOn(api, "send").mockReturnValue(answer.promise);
    const again = vi.spyOn(api, "regenerate").mockRejectedValue(new ApiError(429, "Too many at once."));
    await chat.open("7");
    const sending = chat.send("more");
    await chat.open("8");
    second = null;
    answer.resolve(turn(message(3, 2), message(4, 3)));
    await sending;
    expect(again).toHaveBeenCalledExactlyOnceWith("7", "4", "big", true);
    expect([chat.refused, toasts.list.map(({ text }) => text)]).toEqual([null, ["Too many at once."]]);
  });

  it("is not read in place of the other one when it had changed", async () => {
    const answer = later<Turn>();
    vi.spyOn(api, "send").mockReturnValue(answer.promise);
    await chat.open("7");
    const sending = chat.send("more");
    await chat.open("8");
    answer.reject(new ApiError(409, "changed", "head", "stale_view"));
    expect(await sending).toBe(false);
    expect([vi.mocked(api.conversation).mock.calls, toasts.list[0]?.text]).toEqual([[["7"], ["8"]], "changed"]);
  });
});

describe("a new conversation whose reader opens another one meanwhile", () => {
  async function leftBehind(fields: Partial<Conversation>): Promise<void> {
    second = "big";
    const answer = later<Conversation>();
    vi.spyOn(api, "createConversation").mockReturnValue(answer.promise);
    const sending = chat.send("hello");
    await chat.open("8");
    second = null;
    answer.resolve(conversation([message(21, null), message(22, 21)], { id: "9", ...fields }));
    expect(await sending).toBe(true);
    expect([chat.id, shown()]).toEqual(["8", ["11", "12"]]);
  }

  it("is made, compared and not shown", async () => {
    const again = vi.spyOn(api, "regenerate").mockResolvedValue(turn(message(21, null), message(23, 21)));
    await leftBehind({});
    expect(created).toHaveBeenCalledExactlyOnceWith(expect.objectContaining({ id: "9" }), "big", false);
    expect(again).toHaveBeenCalledExactlyOnceWith("9", "22", "big", true);
  });

  it("goes with its reader if it was a temporary one", async () => {
    const gone = vi.spyOn(api, "deleteConversation").mockResolvedValue(new Response());
    const again = vi.spyOn(api, "regenerate");
    await leftBehind({ temporary: true });
    expect([gone.mock.calls, again.mock.calls]).toEqual([[["9"]], []]);
  });
});

describe("what is queued", () => {
  it("takes no file with it that was chosen while it was sent", async () => {
    keepQueue("7", [{ text: "one", attachments: [], after: null }]);
    const answer = later<Turn>();
    vi.spyOn(api, "send").mockReturnValue(answer.promise);
    await chat.open("7");
    const composer = new ComposerStore(chat);
    composer.open("7");
    composer.set("a draft");
    const sending = composer.sendNext();
    await composer.attach([new File(["oak"], "notes.txt")]);
    answer.resolve(turn(message(3, 2), message(4, 3)));
    await sending;
    const file = { name: "notes.txt", text: "oak" };
    expect([composer.text, composer.attachments, attachmentsOf("7"), queueOf("7")]).toEqual(["a draft", [file], [file], []]);
    keepAttachments("7", []);
    keepDraft("7", "");
  });

  it("is not shown any more when another tab has sent it", async () => {
    keepQueue("7", [{ text: "text 3", attachments: [], after: "2" }]);
    vi.mocked(api.conversation).mockResolvedValue(conversation([message(1, null), message(2, 1), message(3, 2), message(4, 3)]));
    const composer = new ComposerStore(chat);
    composer.open("7");
    expect(composer.firstIsSent).toBe(false); // nobody knows yet
    await chat.open("7");
    expect(composer.firstIsSent).toBe(true);
    composer.dropSent();
    expect([composer.queue, queueOf("7")]).toEqual([[], []]);
  });

  it("does not come back when another tab has removed it", async () => {
    const waiting = (text: string) => ({ text, attachments: [], after: null });
    keepQueue("7", [waiting("one"), waiting("two"), waiting("three")]);
    await chat.open("7");
    const composer = new ComposerStore(chat);
    composer.open("7");
    keepQueue("7", [waiting("two"), waiting("three")]); // as the other tab does
    composer.remove(2);
    expect(queueOf("7")).toEqual([waiting("two")]);
    composer.remove(1); // which is not there any more
    expect(queueOf("7")).toEqual([waiting("two")]);
    keepQueue("7", []);
  });
});

const entry = (id: number, fields: Partial<ConversationSummary> = {}): ConversationSummary => {
  const { messages: _messages, version: _version, seen_from: _seen, ...summary } = conversation([]);
  return { ...summary, id: String(id), title: `t${id}`, updated: `2026-01-01T00:0${id}:00Z`, ...fields };
};
const page = (...ids: number[]): ConversationPage => ({ conversations: ids.map((id) => entry(id)), next: null, folders: [], archived: 0 });

describe("the list, while a page of it is on its way", () => {
  const list = (): string[] => conversations.main.items.map(({ id, title }) => `${id} ${title}`);
  let conversations: ConversationList;
  let onList: Parameters<typeof events.onList>[0];

  beforeEach(async () => {
    vi.spyOn(events, "onList").mockImplementation((listener) => {
      onList = listener;
      return () => {};
    });
    vi.spyOn(api, "conversations").mockResolvedValue(page(3, 2, 1));
    conversations = new ConversationList();
    conversations.start(null);
    await vi.waitFor(() => expect(list()).toEqual(["3 t3", "2 t2", "1 t1"]), PATIENCE);
  });

  it("forgets nothing that happens then", async () => {
    const answer = later<ConversationPage>();
    vi.mocked(api.conversations).mockReturnValue(answer.promise);
    vi.spyOn(api, "bulk").mockResolvedValue({ count: 1 });
    onList({ change: "reset" } as Parameters<typeof onList>[0]);
    await conversations.remove(["2"]);
    onList({ change: "updated", conversation: entry(1, { title: "renamed" }) });
    onList({ change: "created", conversation: entry(4) });
    answer.resolve(page(3, 2, 1));
    await vi.waitFor(() => expect(list()).toEqual(["4 t4", "3 t3", "1 renamed"]), PATIENCE);
  });

  it("believes the page that was asked for last", async () => {
    const [slow, quick] = [later<ConversationPage>(), later<ConversationPage>()];
    vi.mocked(api.conversations).mockReturnValueOnce(slow.promise).mockReturnValueOnce(quick.promise);
    const loads = [conversations.main.load(), conversations.main.load()];
    quick.resolve(page(3));
    slow.resolve(page(3, 2, 1));
    await Promise.all(loads);
    expect(list()).toEqual(["3 t3"]);
  });

  it("takes back a change that was refused, and nothing that was changed since", async () => {
    const refusal = later<never>();
    vi.spyOn(api, "updateConversation").mockReturnValueOnce(refusal.promise);
    const changing = conversations.change("1", { title: "first", pinned: true });
    onList({ change: "updated", conversation: entry(1, { title: "of a phone", pinned: true }) });
    refusal.reject(new ApiError(503, "away"));
    await changing;
    expect(conversations.find("1")).toMatchObject({ title: "of a phone", pinned: false });
    vi.mocked(api.updateConversation).mockRejectedValue(new ApiError(404, "gone"));
    const refused = conversations.change("2", { archived: true }); // into a part that is not loaded
    onList({ change: "deleted", conversation: entry(2) });
    await refused;
    expect(conversations.find("2")).toBeUndefined();
  });
});
