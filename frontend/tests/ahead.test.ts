import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { sendAhead, takeAhead } from "../src/lib/ahead";

const fetched = vi.fn((_path: string) => Promise.resolve(new Response("{}")));

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("fetch", fetched);
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
  fetched.mockClear();
});

it("gives the answer to a request that was sent ahead to one taker", async () => {
  sendAhead("/api/conversations/1");
  expect(takeAhead("/api/conversations/2")).toBeNull();
  expect((await takeAhead("/api/conversations/1"))?.ok).toBe(true);
  expect(takeAhead("/api/conversations/1")).toBeNull();
  expect(fetched).toHaveBeenCalledTimes(1);
});

it("gives no old answer", () => {
  sendAhead("/api/conversations/1");
  vi.advanceTimersByTime(6000);
  expect(takeAhead("/api/conversations/1")).toBeNull();
});
