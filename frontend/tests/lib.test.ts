import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { cookieValue, failure, parse } from "../src/lib/api";
import { count, duration, groupByAge, milliseconds, plural, roughly, sentence, tenths } from "../src/lib/format";
import { paced } from "../src/lib/paced";
import { parseRoute } from "../src/lib/route";
import { isAtBottom } from "../src/lib/scroll";
import { signOnAddress, signOnProblem } from "../src/lib/signOn";

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

  it("says measured milliseconds as precisely as they matter", () => {
    expect([0, 12.4, 99.6, 130, 4200, 61_000].map(milliseconds)).toEqual(["0 ms", "12 ms", "100 ms", "0.1 s", "4.2 s", "1 min 1 s"]);
  });

  it("says estimates roughly", () => {
    const seconds = [0, 9.4, 9.5, 32.4, 57.4, 57.5, 150, 3569, 3570, 5000, 90_000];
    expect(seconds.map(roughly)).toEqual("1 s,9 s,10 s,30 s,55 s,1 min,3 min,59 min,1 h,1.5 h,25 h".split(","));
  });

  it("says measured seconds to a tenth", () => {
    expect([0, 0.04, 4.53, 9.96, 42.4, 59.7].map(tenths)).toEqual(["0 s", "0 s", "4.5 s", "10 s", "42 s", "1 min"]);
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
    expect(parseRoute("/tree/")).toEqual({ page: "tree", section: "" });
    expect(parseRoute("/tree/line")).toEqual({ page: "tree", section: "line" });
    expect(parseRoute("/login")).toEqual({ page: "usedLink" });
    for (const path of ["/elsewhere", "/c/", "/c/1/2", "/trees"]) expect(parseRoute(path)).toEqual({ page: "unknown" });
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

describe("paced", () => {
  let said: string[];
  let voice: ReturnType<typeof paced>;
  beforeEach(() => {
    vi.useFakeTimers();
    said = [];
    voice = paced((text) => said.push(text), 20_000);
  });
  afterEach(() => {
    voice.stop();
    vi.useRealTimers();
  });

  it("says the first at once and then the newest now and then", () => {
    for (let place = 30; place > 0; place--) {
      voice.tell(`number ${place}`);
      vi.advanceTimersByTime(1000);
    }
    expect(said).toEqual(["number 30", "number 11"]);
    vi.advanceTimersByTime(60_000);
    expect(said).toEqual(["number 30", "number 11", "number 1"]);
  });

  it("falls silent at once, and begins anew", () => {
    for (const text of ["number 2", "number 1", "", "number 9"]) voice.tell(text);
    expect(said).toEqual(["number 2", "", "number 9"]);
  });

  it("repeats nothing", () => {
    voice.tell("number 2");
    voice.tell("number 2");
    vi.advanceTimersByTime(60_000);
    voice.tell("number 2");
    expect(said).toEqual(["number 2"]);
  });
});

describe("signing on elsewhere", () => {
  it("comes back to where the reader was", () => {
    expect(signOnAddress("/base/oidc/login", { pathname: "/base/c/1", search: "?x=a&b" })).toBe(
      "/base/oidc/login?next=%2Fbase%2Fc%2F1%3Fx%3Da%26b",
    );
  });

  it("says why it did not work, in our words", () => {
    expect(signOnProblem("?sign_on=not_admitted")).toBe("login.notAdmitted");
    expect(signOnProblem("?sign_on=<b>")).toBe("login.signOnFailed");
    expect(signOnProblem("?sign_on=toString")).toBe("login.signOnFailed");
    expect(signOnProblem("?x=1")).toBeNull();
  });
});
