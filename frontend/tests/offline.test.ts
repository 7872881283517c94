import { afterEach, describe, expect, it, vi } from "vitest";
import { ask, forget, serverOf, remember, remembered } from "../src/connect/servers";
import { sharedText } from "../src/lib/offline";
import { isAsset, isConversation, isPage, leavesSession, shellOf } from "../src/sw/routes";

afterEach(() => vi.unstubAllGlobals());

describe("the service worker's routes", () => {
  it("take pages, assets and what can be read, and nothing else", () => {
    expect(["/", "/c/12", "/share", "/connect"].every(isPage)).toBe(true);
    expect(["/login", "/admin/", "/tree/", "/api/me", "/s/abc"].some(isPage)).toBe(false);
    expect(isAsset("/static/assets/index-abc.js")).toBe(true);
    expect(["/api/me", "/api/models", "/api/conversations", "/api/conversations/7"].every(isConversation)).toBe(true);
    expect(["/api/keys", "/api/events", "/api/conversations/7/messages/8/stream", "/api/conversations/search"].some(isConversation)).toBe(false);
  });

  it("forget a reader's conversations when a session begins or ends", () => {
    expect(leavesSession("POST", "/api/logout") && leavesSession("POST", "/api/login") && leavesSession("GET", "/login")).toBe(true);
    expect(leavesSession("GET", "/api/me")).toBe(false);
  });

  it("keep the page that may ask other servers apart", () => {
    expect(["/", "/c/3", "/connect"].map(shellOf)).toEqual(["/", "/", "/connect"]);
  });
});

describe("a shared text", () => {
  it("has each part once", () => {
    expect(sharedText("?title=A+page&text=Look+at+https%3A%2F%2Fexample.org&url=https%3A%2F%2Fexample.org")).toBe(
      "A page\nLook at https://example.org\nhttps://example.org",
    );
    expect(sharedText("?title=Note&text=Note+of+today")).toBe("Note of today");
    expect(sharedText(`?text=${"x".repeat(30_000)}`)).toHaveLength(20_000);
    expect(sharedText("")).toBe("");
  });
});

describe("servers", () => {
  it("are read as people type them", () => {
    expect(
      ["192.168.1.5:8000", "localhost", "chat.example.org", "https://chat.example.org/c/4", "my-pc.local"].map(serverOf),
    ).toEqual(["http://192.168.1.5:8000", "http://localhost", "https://chat.example.org", "https://chat.example.org", "http://my-pc.local"]);
    expect(["", "two words", "javascript:alert(1)", "ftp://x", "http://"].map(serverOf)).toEqual([null, null, null, null, null]);
  });

  it("are remembered, the latest first, and whatever is stored is checked", () => {
    const values = new Map<string, string>();
    const storage = { getItem: (key: string) => values.get(key) ?? null, setItem: (key: string, value: string) => values.set(key, value) };
    for (let port = 1; port < 12; port++) remember(storage as unknown as Storage, `http://a:${port}`);
    remember(storage as unknown as Storage, "http://a:9");
    expect(remembered(storage).slice(0, 3)).toEqual(["http://a:9", "http://a:11", "http://a:10"]);
    expect(remembered(storage)).toHaveLength(8);
    forget(storage as unknown as Storage, "http://a:9");
    expect(remembered(storage)).not.toContain("http://a:9");
    values.set("canopy.servers", '["javascript:alert(1)", 5, "http://a:1"]');
    expect(remembered(storage)).toEqual(["http://a:1"]);
    values.set("canopy.servers", "{");
    expect(remembered(storage)).toEqual([]);
  });

  it("are asked, and said to be silent, something else, or not to be asked from here", async () => {
    const page = (protocol: string): Location => ({ protocol }) as Location;
    const answers = async (response: () => Promise<Response>): Promise<string> => {
      vi.stubGlobal("fetch", response);
      return (await ask("http://a", page("http:"))).kind;
    };
    expect(await answers(() => Promise.resolve(Response.json({ status: "ok", service: "canopy" })))).toBe("canopy");
    expect(await answers(() => Promise.resolve(new Response("hello")))).toBe("other");
    expect(await answers(() => Promise.reject(new TypeError("refused")))).toBe("silent");
    expect((await ask("http://a", page("https:"))).kind).toBe("blocked");
  });
});
