import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { ConnectionState } from "../src/chat/connection.svelte";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

test("a connection that is back soon was never worth a word", () => {
  const connection = new ConnectionState();
  connection.dropped();
  vi.advanceTimersByTime(4000);
  connection.restored();
  vi.advanceTimersByTime(60_000);
  expect(connection.reconnecting).toBe(false);
});

test("a connection that stays away is told, from its first drop on, until it is back", () => {
  const connection = new ConnectionState();
  connection.dropped();
  vi.advanceTimersByTime(4000);
  connection.dropped(); // another try has failed
  vi.advanceTimersByTime(1500);
  expect(connection.reconnecting).toBe(true);
  connection.restored();
  expect(connection.reconnecting).toBe(false);
});
