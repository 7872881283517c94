import { describe, expect, it } from "vitest";
import { parseRoute } from "../src/lib/route";
import { browserName } from "../src/settings/browsers";
import { byDay, numberIn } from "../src/settings/numbers";
import { FAMILIES, expiry, scope } from "../src/settings/scopes";
import { EMPTY, fieldsOf, styleFrom } from "../src/settings/styles";

describe("numbers in fields", () => {
  it("reads numbers within bounds, with a point or a comma", () => {
    expect(numberIn(" 0.5 ", 0, 2)).toBe(0.5);
    expect(numberIn("0,5", 0, 2)).toBe(0.5);
    expect(numberIn("2", 0, 2)).toBe(2);
  });
  it("reads an empty field as null", () => {
    expect(numberIn("  ", 0, 2)).toBe(null);
  });
  it("refuses everything else", () => {
    for (const text of ["2.1", "-1", "x", "1e9", "NaN", "Infinity"]) expect(numberIn(text, 0, 2)).toBe(undefined);
    expect(numberIn("1.5", 1, 10, true)).toBe(undefined);
  });
});

describe("a key's limits", () => {
  it("end so many days from now, or never", () => {
    const now = Date.parse("2026-01-01T00:00:00Z");
    expect(expiry(7, now)).toBe("2026-01-08T00:00:00.000Z");
    expect(expiry(0, now)).toBe(null);
  });
  it("are none where everything is chosen", () => {
    expect(scope([...FAMILIES], FAMILIES)).toEqual([]);
    expect(scope(["chat"], FAMILIES)).toEqual(["chat"]);
  });
});

describe("styles", () => {
  it("come back from the fields as they were", () => {
    const style = { instructions: "Be brief.", temperature: 0, top_p: null, max_tokens: 50 };
    expect(styleFrom(fieldsOf(style))).toEqual(style);
  });
  it("need every number within its bounds", () => {
    expect(styleFrom({ ...EMPTY, top_p: "0" })).toBe(null);
    expect(styleFrom({ ...EMPTY, max_tokens: "40000" })).toBe(null);
  });
});

it("groups uses by their day", () => {
  const lines = [
    { day: "2026-02-02", model: "a" },
    { day: "2026-02-02", model: "b" },
    { day: "2026-02-01", model: "a" },
  ];
  expect(byDay(lines).map(([day, group]) => [day, group.length])).toEqual([
    ["2026-02-02", 2],
    ["2026-02-01", 1],
  ]);
});

it("names browsers", () => {
  expect(browserName("Mozilla/5.0 (X11; Linux x86_64; rv:150.0) Gecko/20100101 Firefox/150.0")).toBe("Firefox, Linux");
  const phone = "Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605.1.15 Version/19.0 Mobile/15E148 Safari/604.1";
  expect(browserName(phone)).toBe("Safari, iPhone");
  expect(browserName("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/150.0.0.0 Safari/537.36 Edg/150.0")).toBe("Edge, Windows");
  expect(browserName("python-httpx/0.28.1")).toBe("python-httpx/0.28.1");
  expect(browserName("")).toBe("");
});

it("knows the addresses of settings and welcome", () => {
  expect(parseRoute("/settings")).toEqual({ page: "settings" });
  expect(parseRoute("/welcome/")).toEqual({ page: "welcome" });
});
