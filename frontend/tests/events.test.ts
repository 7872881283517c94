import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Events, type ConversationHandler, withDelta } from "../src/lib/events";

describe("withDelta", () => {
  it("appends, corrects from its place on, and leaves what is known", () => {
    expect(withDelta("one ", { message: "1", offset: 4, text: "two" })).toBe("one two");
    expect(withDelta("one two three", { message: "1", offset: 0, text: "one two" })).toBe("one two three");
    expect(withDelta("one xxx", { message: "1", offset: 4, text: "two" })).toBe("one two");
  });
});

class Page extends EventTarget {
  hidden = false;

  show(seen: boolean): void {
    this.hidden = !seen;
    this.dispatchEvent(new Event("visibilitychange"));
  }
}

/** A server whose streams stay open; `send` writes into the newest one. */
class Server {
  paths: string[] = [];
  open = 0;
  #controller: ReadableStreamDefaultController<Uint8Array> | undefined;

  fetch = (path: string, init: RequestInit): Promise<Response> => {
    this.paths.push(path);
    this.open++;
    const body = new ReadableStream<Uint8Array>({ start: (controller) => void (this.#controller = controller) });
    const mine = this.#controller;
    init.signal?.addEventListener("abort", () => {
      this.open--;
      mine?.error(new DOMException("aborted", "AbortError"));
    });
    return Promise.resolve(new Response(body));
  };

  async send(event: string, data: unknown): Promise<void> {
    this.#controller?.enqueue(new TextEncoder().encode(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`));
    await vi.advanceTimersByTimeAsync(1);
  }
}

describe("Events", () => {
  let page: Page;
  let server: Server;
  const handler = (): ConversationHandler => ({
    onReady: vi.fn(),
    onMessage: vi.fn(),
    onDelta: vi.fn(),
    onWaiting: vi.fn(),
    onEnd: vi.fn(),
    onResync: vi.fn(),
    onDrop: vi.fn(),
  });
  const later = (ms = 1): Promise<unknown> => vi.advanceTimersByTimeAsync(ms);

  beforeEach(() => {
    vi.useFakeTimers();
    page = new Page();
    server = new Server();
    vi.stubGlobal("document", page);
    vi.stubGlobal("fetch", server.fetch);
    vi.stubGlobal("addEventListener", () => {});
    vi.stubGlobal("removeEventListener", () => {});
  });
  afterEach(() => {
    vi.useRealTimers();
    vi.unstubAllGlobals();
  });

  it("has one connection for the list and the conversation", async () => {
    const events = new Events();
    const list = vi.fn();
    const open = handler();
    events.onList(list);
    events.subscribe("7", open);
    await later();
    expect(server.paths).toEqual(["/api/events?conversation=7"]);
    await server.send("ready", { conversation: 7, version: "a" });
    await server.send("delta", { message: 9, offset: 0, text: "x" });
    await server.send("list", { change: "deleted", conversation: { id: 3 } });
    expect(open.onReady).toHaveBeenCalledWith("a");
    expect(open.onDelta).toHaveBeenCalledWith({ message: "9", offset: 0, text: "x" });
    expect(list).toHaveBeenCalledExactlyOnceWith({ change: "deleted", conversation: { id: "3" } });
  });

  it("follows another conversation in place of the first, and asks for the list anew", async () => {
    const events = new Events();
    const list = vi.fn();
    events.onList(list);
    const leave = events.subscribe("7", handler());
    await later();
    await server.send("ready", { conversation: 7, version: "a" });
    const next = handler();
    events.subscribe("8", next);
    leave();
    await later();
    await server.send("ready", { conversation: 8, version: "b" });
    expect(server.open).toBe(1);
    expect(next.onReady).toHaveBeenCalledWith("b");
    expect(list).toHaveBeenCalledWith({ change: "reset", conversation: null });
  });

  it("lets go of the connection in a hidden tab, unless an answer runs", async () => {
    const events = new Events();
    events.subscribe("7", handler());
    await later();
    events.busy = true;
    page.show(false);
    await later(10_000);
    expect(server.open).toBe(1);
    events.busy = false;
    await later(10_000);
    expect(server.open).toBe(0);
    page.show(true);
    await later();
    expect(server.open).toBe(1);
  });

  it("takes 20 s of silence for a lost connection", async () => {
    const events = new Events();
    const open = handler();
    events.subscribe("7", open);
    await later();
    await later(19_000);
    expect(open.onDrop).not.toHaveBeenCalled();
    await later(2_000);
    expect(open.onDrop).toHaveBeenCalledOnce();
    expect(server.paths.length).toBe(2);
  });
});
