import { query, request } from "../../lib/api";

export const METRICS = [
  "requests",
  "failed",
  "cancelled",
  "tokens_in",
  "tokens_out",
  "wait_p50",
  "wait_p95",
  "wait_p99",
  "service_p50",
  "service_p95",
  "service_p99",
  "utilisation",
] as const;
export const GROUPINGS = ["all", "model", "node", "user"] as const;
export const HOUR = 3600;
export const DAY = 24 * HOUR;
/** Spans that a button shows, in seconds; they end now. */
export const SPANS = [3600, 21_600, 86_400, 604_800, 2_592_000, 7_776_000] as const;
/** How much earlier the other curve is: in seconds, or as long as the span is. 0: there is none. */
export const COMPARISONS = [0, "span", 86_400, 604_800] as const;
export type Earlier = (typeof COMPARISONS)[number];

export type Metric = (typeof METRICS)[number];
export type Grouping = (typeof GROUPINGS)[number];
export type Unit = "requests" | "tokens" | "seconds" | "ratio";

export interface Line {
  name: string;
  values: (number | null)[];
  /** Over the whole span. */
  total: number | null;
}

export interface History {
  metric: Metric;
  by: Grouping;
  unit: Unit;
  /** Seconds. */
  step: number;
  /** Unix seconds. */
  starts: number[];
  series: Line[];
}

/** A span of time in Unix seconds. */
export interface Span {
  from: number;
  to: number;
}

export interface Question extends Span {
  metric: Metric;
  by: Grouping;
  step?: number | undefined;
}

const PATH = "/api/operate/history";
/** The server's steps, in seconds, and how many of them a screen shows well. */
const STEPS = [60, 300, 900, HOUR, 6 * HOUR, DAY];
const MOST_STEPS = 400;
/** Minutes are kept for so long, less a moment for the way; what is older is read by hours. */
const MINUTES_KEPT = 25 * HOUR - 120;
/** Of two curves by hours: shorter ones would be dots. */
const SHORTEST_BY_HOUR = DAY;
const SHORTEST = 5 * 60;
const LONGEST = 90 * DAY;

export async function read(question: Question): Promise<History> {
  return (await (await request("GET", `${PATH}${query(question)}`)).json()) as History;
}

/** The same as a file, in the finest steps that are kept. */
export function csvAddress(question: Question): string {
  return `${PATH}/csv${query({ ...question, step: undefined })}`;
}

/** The finest step that is kept, and in which the span has no more points than a screen shows well. */
export function stepFor(span: Span, now: number): number {
  const least = span.from < now - MINUTES_KEPT ? HOUR : 0;
  return STEPS.find((step) => step >= least && (span.to - span.from) / step <= MOST_STEPS) ?? DAY;
}

/** The span as long as its length allows: not in the future, not more than is kept. */
export function bounded(span: Span, now: number): Span {
  const length = Math.min(Math.max(span.to - span.from, SHORTEST), LONGEST);
  const to = Math.min(Math.round(span.to), Math.ceil(now / 60) * 60);
  return { from: Math.max(Math.round(to - length), now - LONGEST), to };
}

/** The span around the same middle, `factor` times as long. */
export function zoomed(span: Span, factor: number, now: number): Span {
  const middle = (span.from + span.to) / 2;
  const half = Math.max(SHORTEST, (span.to - span.from) * factor) / 2;
  return bounded({ from: middle - half, to: middle + half }, now);
}

/** The span moved by a part of its length. */
export function moved(span: Span, part: number, now: number): Span {
  const by = (span.to - span.from) * part;
  return bounded({ from: span.from + by, to: span.to + by }, now);
}

/** What to ask for, and for a comparison what to ask for as well, in the same steps. */
export function questions(question: Question, earlier: Earlier, now: number): [Question, Question | null] {
  if (earlier === 0) return [{ ...question, step: stepFor(question, now) }, null];
  const compared = earlierBy(question, earlier, now);
  if (compared[0].step < HOUR || question.to - question.from >= SHORTEST_BY_HOUR) return compared;
  return earlierBy({ ...question, from: question.to - SHORTEST_BY_HOUR }, earlier, now);
}

/** The question and the same for an earlier time, in steps that are kept of both; null: nothing is kept. */
function earlierBy(question: Question, earlier: Exclude<Earlier, 0>, now: number): [Question & { step: number }, Question | null] {
  const length = question.to - question.from;
  const about = earlier === "span" ? length : earlier;
  const step = stepFor({ from: question.from - about, to: question.to - about }, now);
  const by = Math.ceil(about / step) * step; // whole steps, so that those of both begin together
  const shown = { ...question, step };
  if (question.from - by < now - LONGEST) return [shown, null];
  return [shown, { ...shown, from: question.from - by, to: question.to - by }];
}

/** Both documents on the time axis of the first; the second's lines carry `mark` in their names. */
export function together(now: History, before: History | null, mark: string): History {
  if (!before) return now;
  const series = before.series.map((line) => ({
    ...line,
    name: `${line.name} ${mark}`,
    values: now.starts.map((_, place) => line.values[place] ?? null),
  }));
  return { ...now, series: [...now.series, ...series] };
}

/** A value as people read it. */
export function shown(value: number | null, unit: Unit, language: string): string {
  if (value === null) return "–";
  if (unit === "ratio") return value.toLocaleString(language, { style: "percent", maximumFractionDigits: 1 });
  if (unit === "seconds") {
    if (value < 1) return `${Math.round(value * 1000).toLocaleString(language)} ms`;
    return `${value.toLocaleString(language, { maximumFractionDigits: value < 10 ? 2 : 0 })} s`;
  }
  return value.toLocaleString(language);
}

/** The start of a step on the axis or in the table. */
export function moment(start: number, step: number, language: string): string {
  const date = new Date(start * 1000);
  if (step >= DAY) return date.toLocaleDateString(language, { dateStyle: "medium" });
  return date.toLocaleString(language, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
}
