import { describe, expect, it } from "vitest";
import { cookieValue, failure, parse } from "../src/lib/api";
import { count, duration, groupByAge, plural, sentence } from "../src/lib/format";
import { renderBlocks } from "../src/lib/markdown";
import { parseRoute } from "../src/lib/route";
import { isAtBottom } from "../src/lib/scroll";

describe("format", () => {
  it("shortens counts", () => {
    expect([0, 9999, 12_400, 145_000, 3_100_000].map(count)).toEqual(["0", "9999", "12.4k", "145k", "3.1M"]);
  });

  it("says durations in their two largest units", () => {
    expect([0, 42.9, 303, 3600, 8040, 273_600, null, -1].map(duration)).toEqual([
      "0 s",
      "42 s",
      "5 min 3 s",
      "1 h",
      "2 h 14 min",
      "3 d 4 h",
      "–",
      "–",
    ]);
  });

  it("counts one thing and several", () => {
    expect([plural(1, "job"), plural(0, "job"), plural(2, "reply", "replies")]).toEqual(["1 job", "0 jobs", "2 replies"]);
  });

  it("begins sentences, but leaves names", () => {
    expect(["wrong password", "n3 is gone", "Ready"].map(sentence)).toEqual(["Wrong password", "n3 is gone", "Ready"]);
  });

  it("groups by calendar day, keeping the order", () => {
    const now = new Date(2026, 4, 20, 0, 30);
    const item = (day: number, hour: number) => ({ updated: new Date(2026, 4, day, hour).toISOString() });
    const items = [item(20, 0), item(19, 23), item(18, 12), item(1, 12), { updated: "2020-01-01T00:00:00Z" }, { updated: "?" }];
    expect(groupByAge(items, now).map((group) => [group.label, group.items.length])).toEqual([
      ["Today", 1],
      ["Yesterday", 1],
      ["Last 7 days", 1],
      ["Last 30 days", 1],
      ["Older", 2],
    ]);
  });
});

describe("routes", () => {
  it("are chat, conversation and tree", () => {
    expect(parseRoute("/")).toEqual({ page: "chat", conversation: null });
    expect(parseRoute("/c/a1-b2")).toEqual({ page: "chat", conversation: "a1-b2" });
    expect(parseRoute("/tree/")).toEqual({ page: "tree" });
    expect(parseRoute("/elsewhere")).toEqual({ page: "chat", conversation: null });
  });
});

describe("api", () => {
  it("finds a cookie", () => {
    expect(cookieValue("a=1; csrftoken=x%3D; b=2", "csrftoken")).toBe("x=");
    expect(cookieValue("", "csrftoken")).toBe("");
  });

  it("reads ids as text", () => {
    expect(parse('{"id":7,"n":7,"messages":[{"id":8}]}')).toEqual({ id: "7", n: 7, messages: [{ id: "8" }] });
  });

  it("reads the server's words, or says the status", async () => {
    const told = await failure(new Response('{"error":{"message":"Too long.","field":"content"}}', { status: 400 }));
    expect([told.message, told.field, told.status]).toEqual(["Too long.", "content", 400]);
    expect((await failure(new Response("<h1>Bad gateway</h1>", { status: 502 }))).message).toContain("502");
  });
});

describe("isAtBottom", () => {
  it("allows a line of distance", () => {
    expect(isAtBottom({ scrollTop: 860, scrollHeight: 1000, clientHeight: 100 })).toBe(true);
    expect(isAtBottom({ scrollTop: 500, scrollHeight: 1000, clientHeight: 100 })).toBe(false);
  });
});

describe("markdown", () => {
  const html = (text: string) => renderBlocks(text).join("");

  it("gives one string a top-level block", () => {
    expect(renderBlocks("# A\n\ntext\n\n- one\n- two\n\n```python\nx = 1\n```")).toHaveLength(4);
  });

  it("shows raw HTML as text, and neither images nor script links", () => {
    expect(html('<img src=x onerror="alert(1)"> <script>alert(1)</script>')).not.toMatch(/<(img|script)/);
    expect(html('![a <b>](https://example.org/x.png?a="b)')).toMatch(/^<p><a href="https:[^"<]*" target="_blank" rel="[a-z ]*">a &lt;b&gt;<\/a><\/p>/);
    expect(html("![x](javascript:alert(1))")).not.toContain("href");
    expect(html("[x](javascript:alert(1))")).not.toContain("href");
  });

  it("escapes code and its language's name", () => {
    expect(html("```<b>\n<i>\n```")).not.toMatch(/<[bi]>/);
    expect(html("```html\n<i>\n```")).not.toContain("<i>");
    expect(html("    <i>")).not.toContain("<i>");
  });

  it("opens links elsewhere, without telling from where", () => {
    expect(html("https://example.org")).toContain('target="_blank" rel="noopener noreferrer nofollow"');
  });
});
