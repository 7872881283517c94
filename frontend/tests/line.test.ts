import { describe, expect, it } from "vitest";
import { type RunningJob, type WaitingJob, filtered, isWaiting, merged, rate } from "../src/dashboard/line/line";

function waiting(id: string, fields: Partial<WaitingJob> = {}): WaitingJob {
  return {
    request_id: id,
    user: "ada",
    job_class: "interactive",
    model: "m",
    node: "root",
    position: 1,
    age: 1,
    starts_in: null,
    reason: "busy",
    attempt: 1,
    restarted: false,
    ...fields,
  };
}

const running: RunningJob = {
  request_id: "r",
  user: "bob",
  job_class: "batch",
  model: "m",
  node: "n1",
  age: 9,
  seconds: 4,
  tokens: 10,
  trail: ["root", "n1"],
  attempt: 1,
};

describe("the line", () => {
  const jobs = [waiting("abc"), waiting("abd", { user: "Bob" }), waiting("xyz", { job_class: "batch", model: "other" })];
  const all = { text: "", model: "", job_class: "" } as const;

  it("is filtered by a part of the id or of the user's name", () => {
    expect(filtered(jobs, { ...all, text: " AB" }).map((job) => job.request_id)).toEqual(["abc", "abd"]);
    expect(filtered(jobs, { ...all, text: "bob" }).map((job) => job.request_id)).toEqual(["abd"]);
  });

  it("is filtered by class and model", () => {
    expect(filtered(jobs, { ...all, job_class: "batch" })).toHaveLength(1);
    expect(filtered(jobs, { ...all, model: "m" })).toHaveLength(2);
    expect(filtered(jobs, all)).toHaveLength(3);
  });

  it("has what was found beyond the listed jobs once", () => {
    expect(merged(jobs, [waiting("abc"), waiting("far")]).map((job) => job.request_id)).toEqual(["abc", "abd", "xyz", "far"]);
  });

  it("tells waiting jobs from running ones, and how fast these are", () => {
    expect([isWaiting(waiting("a")), isWaiting(running)]).toEqual([true, false]);
    expect(rate(running)).toBe(2.5);
    expect(rate({ ...running, seconds: 0 })).toBe(0);
  });
});
