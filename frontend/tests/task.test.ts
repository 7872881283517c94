import { beforeEach, expect, it, vi } from "vitest";
import { ApiError } from "../src/lib/api";
import { Latest } from "../src/lib/latest";
import { Task } from "../src/lib/task.svelte";
import { toasts } from "../src/lib/toasts.svelte";
import { later } from "./later";

beforeEach(() => toasts.clear());

it("closes the dialog when the work is done, and says in it what went wrong", async () => {
  const close = vi.fn();
  const task = new Task(close);
  await task.run("n1", () => Promise.reject(new ApiError(409, "busy")));
  expect([task.problem, task.working, close.mock.calls.length]).toEqual(["busy", false, 0]);
  await task.run("n1", () => Promise.resolve());
  expect([task.problem, close.mock.calls.length, toasts.list]).toEqual(["", 1, []]);
});

it("closes no other dialog that is open by then, and says elsewhere what went wrong", async () => {
  const close = vi.fn();
  const task = new Task(close);
  const [done, failed] = [later<void>(), later<void>()];
  const works = task.run("n1", () => done.promise);
  task.leave();
  done.resolve();
  await works;
  const fails = task.run("n1", () => failed.promise);
  failed.reject(new ApiError(409, "busy"));
  await fails;
  expect([close.mock.calls.length, task.problem, toasts.list.map(({ text }) => text)]).toEqual([0, "", ["n1: busy"]]);
});

it("does one thing at a time", async () => {
  const work = later<void>();
  const act = vi.fn(() => work.promise);
  const task = new Task(() => {});
  const runs = [task.run("n1", act), task.run("n1", act)];
  work.resolve();
  await Promise.all(runs);
  expect(act).toHaveBeenCalledTimes(1);
});

it("tells the latest request from those before it", () => {
  const latest = new Latest();
  const [first, second] = [latest.begin(), latest.begin()];
  expect([first(), second()]).toEqual([false, true]);
});
