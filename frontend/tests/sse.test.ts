import { afterEach, describe, expect, it, vi } from "vitest";
import { ApiError } from "../src/lib/api";
import { EventParser, follow, retryDelay } from "../src/lib/sse";

describe("EventParser", () => {
  it("reads events, whatever their line ends", () => {
    expect(new EventParser().push('event: delta\ndata: {"text":"a"}\n\nevent: done\r\ndata: {}\r\n\r\n')).toEqual([
      { event: "delta", data: '{"text":"a"}' },
      { event: "done", data: "{}" },
    ]);
  });

  it("gives the same events however the text is cut", () => {
    const text = ": ping\n\nevent: delta\r\ndata: eins\r\ndata: zwei\r\n\r\ndata:drei\n\n";
    const whole = new EventParser().push(text);
    for (let size = 1; size < text.length; size++) {
      const parser = new EventParser();
      const chunks = text.match(new RegExp(`[^]{1,${size}}`, "g")) ?? [];
      expect(chunks.flatMap((chunk) => parser.push(chunk))).toEqual(whole);
    }
    expect(whole).toEqual([
      { event: "delta", data: "eins\nzwei" },
      { event: "message", data: "drei" },
    ]);
  });

  it("keeps an unfinished event back, and drops comments and events without data", () => {
    const parser = new EventParser();
    expect(parser.push(": ping\n\nevent: delta\n\nevent: delta\ndata: x\n")).toEqual([]);
    expect(parser.push("\n")).toEqual([{ event: "delta", data: "x" }]);
  });
});

describe("follow", () => {
  afterEach(() => vi.unstubAllGlobals());

  const stream = (text: string): Response => new Response(text, { headers: { "Content-Type": "text/event-stream" } });
  const serve = (...answers: Response[]) => {
    const fetch = vi.fn(() => Promise.resolve(answers.shift() ?? new Response(null, { status: 500 })));
    vi.stubGlobal("fetch", fetch);
    vi.stubGlobal("addEventListener", () => {});
    vi.stubGlobal("removeEventListener", () => {});
    return fetch;
  };

  it("connects again after a drop, until the last event", async () => {
    const fetch = serve(stream("data: 1\n\n"), stream("data: 12\n\nevent: done\ndata: {}\n\ndata: never\n\n"));
    const heard: string[] = [];
    const onOpen = vi.fn();
    const onDrop = vi.fn();
    await follow("/x", {
      signal: new AbortController().signal,
      onOpen,
      onDrop,
      onEvent: ({ event, data }) => {
        heard.push(data);
        return event !== "done";
      },
    });
    expect(heard).toEqual(["1", "12", "{}"]);
    expect([fetch.mock.calls.length, onOpen.mock.calls.length, onDrop.mock.calls.length]).toEqual([2, 2, 1]);
  });

  it("gives up when the server refuses", async () => {
    serve(new Response('{"error":{"message":"No such message."}}', { status: 404 }));
    const attempt = follow("/x", { signal: new AbortController().signal, onEvent: () => true });
    await expect(attempt).rejects.toEqual(new ApiError(404, "No such message."));
  });

  it("waits longer after each failure, within reason", () => {
    expect([1, 2, 3, 10].map(retryDelay)).toEqual([400, 800, 1600, 5000]);
  });
});
