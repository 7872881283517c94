/** Numbers and times as people read them. Pure. */

/** 950 → "950", 12400 → "12.4k", 3100000 → "3.1M". */
export function count(value: number): string {
  if (value < 10_000) return String(value);
  const [scaled, unit] = value < 1_000_000 ? [value / 1000, "k"] : [value / 1_000_000, "M"];
  return `${scaled >= 100 ? Math.round(scaled) : Math.round(scaled * 10) / 10}${unit}`;
}

const BYTE_UNITS = ["B", "kB", "MB", "GB", "TB"];

/** 950 → "950 B", 12400 → "12.4 kB". */
export function bytes(value: number): string {
  let unit = 0;
  while (value >= 1000 && unit < BYTE_UNITS.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : Math.round(value * 10) / 10} ${BYTE_UNITS[unit]}`;
}

/** Seconds as their two largest units: "42 s", "5 min 3 s", "2 h 14 min", "3 d 4 h". */
export function duration(seconds: number | null): string {
  if (seconds === null || !Number.isFinite(seconds) || seconds < 0) return "–";
  const whole = Math.floor(seconds);
  const parts: [number, string][] = [
    [Math.floor(whole / 86400), "d"],
    [Math.floor(whole / 3600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "min"],
    [whole % 60, "s"],
  ];
  const first = parts.findIndex(([amount]) => amount > 0);
  if (first < 0) return "0 s";
  return parts
    .slice(first, first + 2)
    .filter(([amount]) => amount > 0)
    .map(([amount, unit]) => `${amount} ${unit}`)
    .join(" ");
}

/** Measured seconds: "0.5 s", "4.5 s", "42 s", then like `duration`. */
export function tenths(seconds: number): string {
  return seconds < 10 ? `${Math.round(seconds * 10) / 10} s` : duration(Math.round(seconds));
}

/** Measured milliseconds: "12 ms", "0.4 s", then like `tenths`. */
export function milliseconds(value: number): string {
  return value < 100 ? `${Math.round(value)} ms` : tenths(value / 1000);
}

/** Estimated seconds, with as many digits as an estimate deserves: "4 s", "30 s", "3 min", "1.5 h". Like api/line.py. */
export function roughly(seconds: number): string {
  if (seconds < 9.5) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 57.5) return `${5 * Math.round(seconds / 5)} s`;
  if (seconds < 59.5 * 60) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 1800) / 2} h`;
}

/** "1 slot", "3 slots". */
export function plural(value: number, noun: string, many = `${noun}s`): string {
  return `${count(value)} ${value === 1 ? noun : many}`;
}

/** A server's words with a capital at their start, unless they start with a name such as "n3". */
export function sentence(text: string): string {
  return /^[a-z]+\b/.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text;
}

export interface AgeGroup<T> {
  label: string;
  items: T[];
}

const AGES: [string, number][] = [
  ["Today", 0],
  ["Yesterday", 1],
  ["Last 7 days", 7],
  ["Last 30 days", 30],
  ["Older", Number.POSITIVE_INFINITY],
];

/** Whole calendar days between two moments, in the reader's time zone. */
function daysBetween(earlier: Date, later: Date): number {
  const day = (date: Date): number => Date.UTC(date.getFullYear(), date.getMonth(), date.getDate()) / 86_400_000;
  return day(later) - day(earlier);
}

/** Items under headings by the age of their `updated` time; their order is kept, empty groups are left out. */
export function groupByAge<T extends { updated: string }>(items: T[], now: Date): AgeGroup<T>[] {
  const label = (item: T): string => {
    const days = daysBetween(new Date(item.updated), now);
    return (AGES.find(([, most]) => days <= most) ?? ["Older"])[0];
  };
  return AGES.map(([name]) => ({ label: name, items: items.filter((item) => label(item) === name) })).filter(
    (group) => group.items.length > 0,
  );
}

/** 0.256 → "25 %". */
export function percent(part: number): string {
  return `${Math.floor(part * 100)} %`;
}
