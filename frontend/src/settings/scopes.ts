/** What a key may call; the server's families, in its order. */
export const FAMILIES = ["chat", "completions", "embeddings", "batches", "jobs", "pages"] as const;
export type Family = (typeof FAMILIES)[number];

/** In how many days a new key may expire; 0: never. */
export const LIFETIMES = [0, 7, 30, 90, 365] as const;

const DAY = 86_400_000;

/** The moment in so many days, as JSON has it; null: never. */
export function expiry(days: number, now: number): string | null {
  return days > 0 ? new Date(now + days * DAY).toISOString() : null;
}

/** All chosen is no limit, as none is. */
export function scope<T>(chosen: T[], all: readonly T[]): T[] {
  return chosen.length === all.length ? [] : chosen;
}
