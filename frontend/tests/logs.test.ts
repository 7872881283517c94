import { expect, it } from "vitest";
import { KEPT, type LogLine, appended, message } from "../src/dashboard/logs/logs.svelte";

const line = (text: string): LogLine => ({ process: "n1", at: null, level: "info", text });

it("numbers lines on, and keeps the newest", () => {
  const first = appended([], [line("a"), line("b")]);
  expect(first.map(({ number, text }) => [number, text])).toEqual([
    [1, "a"],
    [2, "b"],
  ]);
  const many = appended(first, Array.from({ length: KEPT }, (_, place) => line(String(place))));
  expect(many).toHaveLength(KEPT);
  expect(many[0]).toMatchObject({ number: 3, text: "0" });
  expect(many.at(-1)).toMatchObject({ number: KEPT + 2, text: String(KEPT - 1) });
});

it("shows a line without the time and the level, which have columns of their own", () => {
  expect(message(line("timestamp='2026-11-29T14:28:24.644313Z' level='info' event='ready'"))).toBe("event='ready'");
  expect(message(line("2026-11-29 14:28:41 [info     ] ready   node=n1"))).toBe("ready   node=n1");
  expect(message(line("2026-11-29 14:28:46.945150+00:00 [error] <0.6.0> no"))).toBe("<0.6.0> no");
  expect(message(line("Traceback"))).toBe("Traceback");
});
