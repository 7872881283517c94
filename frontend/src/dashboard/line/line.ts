/** What waits and runs, as the server tells it; and what of it is shown. Pure. */
export interface WaitingJob {
  request_id: string;
  user: string;
  job_class: JobClass;
  model: string;
  node: string;
  /** From 1. */
  position: number;
  /** Seconds since the request came, when the list was made. */
  age: number;
  starts_in: number | null;
  reason: string;
  attempt: number;
  restarted: boolean;
}

export interface RunningJob {
  request_id: string;
  user: string;
  job_class: JobClass;
  model: string;
  node: string;
  age: number;
  /** For so long it runs. */
  seconds: number;
  tokens: number;
  /** The nodes on its way, root first. */
  trail: string[];
  attempt: number;
}

export type JobClass = "interactive" | "batch";
export type AnyJob = WaitingJob | RunningJob;

export interface ModelTotals {
  model: string;
  waiting: number;
  batch: number;
  running: number;
  paused: boolean;
  pause_reason: string;
}

export interface Line {
  at: number;
  models: ModelTotals[];
  waiting: WaitingJob[];
  running: RunningJob[];
  /** Every waiting job is in the list. */
  complete: boolean;
}

export const EMPTY: Line = { at: 0, models: [], waiting: [], running: [], complete: true };

export interface Filter {
  /** A part of the id, or of the user's name. */
  text: string;
  /** Empty for all. */
  model: string;
  job_class: JobClass | "";
}

export function isWaiting(job: AnyJob): job is WaitingJob {
  return "position" in job;
}

/** The jobs that the filter lets through, in their order. */
export function filtered<Job extends AnyJob>(jobs: readonly Job[], filter: Filter): Job[] {
  const text = filter.text.trim().toLowerCase();
  return jobs.filter(
    (job) =>
      (!filter.model || job.model === filter.model) &&
      (!filter.job_class || job.job_class === filter.job_class) &&
      (!text || job.request_id.toLowerCase().includes(text) || job.user.toLowerCase().includes(text)),
  );
}

/** The lists together; a job that is in both counts once. */
export function merged<Job extends AnyJob>(listed: readonly Job[], found: readonly Job[]): Job[] {
  const known = new Set(listed.map((job) => job.request_id));
  return [...listed, ...found.filter((job) => !known.has(job.request_id))];
}

/** Tokens a second, or 0 before anything can be said. */
export function rate(job: RunningJob): number {
  return job.seconds > 0 ? job.tokens / job.seconds : 0;
}

/** The first characters of an id, which tell it apart from the others on a page. */
export function short(id: string): string {
  return id.slice(0, 12);
}
