/** A number of a form's field: null for an empty one, undefined for one that is not within the bounds. */
export function numberIn(text: string, least: number, most: number, whole = false): number | null | undefined {
  const trimmed = text.trim().replace(",", ".");
  if (trimmed === "") return null;
  const value = Number(trimmed);
  if (!Number.isFinite(value) || value < least || value > most) return undefined;
  return whole && !Number.isInteger(value) ? undefined : value;
}

/** The days of a use, each with its lines, in the order in which they came. */
export function byDay<T extends { day: string }>(lines: T[]): [string, T[]][] {
  const days = new Map<string, T[]>();
  for (const line of lines) days.set(line.day, [...(days.get(line.day) ?? []), line]);
  return [...days];
}
