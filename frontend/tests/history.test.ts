import { describe, expect, it } from "vitest";
import { DAY, HOUR, type History, bounded, moved, questions, shown, stepFor, together, zoomed } from "../src/dashboard/history/history";

const NOW = 1_900_000_800;

const history = (values: (number | null)[], starts = [0, 60]): History => ({
  metric: "requests",
  by: "model",
  unit: "requests",
  step: 60,
  starts,
  series: [{ name: "echo", values, total: 3 }],
});

describe("a span of time", () => {
  it("ends now at the latest and is no longer than what is kept", () => {
    expect(bounded({ from: NOW - HOUR, to: NOW + HOUR }, NOW)).toEqual({ from: NOW - 2 * HOUR, to: NOW });
    expect(bounded({ from: 0, to: NOW }, NOW)).toEqual({ from: NOW - 90 * DAY, to: NOW });
    expect(bounded({ from: NOW - 10, to: NOW }, NOW)).toEqual({ from: NOW - 300, to: NOW });
  });

  it("is zoomed around its middle and moved by parts of itself", () => {
    const span = { from: NOW - 4 * HOUR, to: NOW - 2 * HOUR };
    expect(zoomed(span, 0.5, NOW)).toEqual({ from: NOW - 3.5 * HOUR, to: NOW - 2.5 * HOUR });
    expect(zoomed(zoomed(span, 2, NOW), 0.5, NOW)).toEqual(span);
    expect(moved(span, -0.5, NOW)).toEqual({ from: NOW - 5 * HOUR, to: NOW - 3 * HOUR });
  });
});

describe("a comparison", () => {
  it("shows any range beside the one before it, in minutes as long as they are kept", () => {
    const question = { metric: "requests", by: "model", from: NOW - 90 * 60, to: NOW } as const;
    const [now, before] = questions(question, "span", NOW);
    expect(now).toEqual({ ...question, step: 60 });
    expect(before).toEqual({ ...question, from: NOW - 180 * 60, to: NOW - 90 * 60, step: 60 });
    const odd = { ...question, from: NOW - 700 * 60 - 17 };
    const [, earlier] = questions(odd, "span", NOW);
    expect((odd.from - (earlier?.from ?? 0)) % 300).toBe(0);
    const old = { ...question, from: NOW - 60 * HOUR, to: NOW - 30 * HOUR };
    expect(questions(old, 0, NOW)[0].step).toBe(HOUR);
    expect(questions({ ...old, from: NOW - 60 * DAY }, "span", NOW)[1]).toBeNull();
    expect(questions(old, "span", NOW)[1]).toEqual({ ...old, from: NOW - 90 * HOUR, to: NOW - 60 * HOUR, step: HOUR });
  });

  it("is of a day at least where it is by hours", () => {
    const question = { metric: "requests", by: "model", from: NOW - HOUR, to: NOW } as const;
    expect(questions(question, 0, NOW)).toEqual([{ ...question, step: 60 }, null]);
    expect([DAY, 7 * DAY, 90 * DAY].map((length) => stepFor({ from: NOW - length, to: NOW }, NOW))).toEqual([300, HOUR, 6 * HOUR]);
    const [now, before] = questions(question, 604_800, NOW);
    expect(now).toEqual({ ...question, from: NOW - DAY, step: HOUR });
    expect(before).toEqual({ ...question, from: NOW - 8 * DAY, to: NOW - 7 * DAY, step: HOUR });
  });

  it("draws both over the present's time", () => {
    const both = together(history([1, 2]), history([5], [0]), "(before)");
    expect(both.series.map((line) => [line.name, line.values])).toEqual([
      ["echo", [1, 2]],
      ["echo (before)", [5, null]],
    ]);
  });
});

it("says values as people read them", () => {
  expect(shown(null, "seconds", "en")).toBe("–");
  expect(shown(0.25, "seconds", "en")).toBe("250 ms");
  expect(shown(4.567, "seconds", "en")).toBe("4.57 s");
  expect(shown(0.123, "ratio", "en")).toBe("12.3%");
  expect(shown(12345, "tokens", "en")).toBe("12,345");
});
