import { roughly } from "../lib/format";
import type { Wait } from "./answer";

/** An estimate that has passed for so long was wrong: no time is shown until there is a better one. */
const PASSED_MS = 2000;

/** The time until an answer starts, as it is at `now` (performance.now()); null where nobody knows. Seconds are counted. */
export function timeLeft(wait: Wait, now: number): string | null {
  if (wait.startsAt === null || now > wait.startsAt + PASSED_MS) return null;
  const seconds = Math.max(1, Math.ceil((wait.startsAt - now) / 1000));
  return seconds < 60 ? `${seconds} s` : roughly(seconds);
}
