import { translation } from "../lib/i18n.svelte";

/** A moment as the reader writes it: date and time of day. */
export function moment(iso: string): string {
  return new Date(iso).toLocaleString(translation.language, { dateStyle: "medium", timeStyle: "short" });
}

/** A day, given as YYYY-MM-DD. */
export function day(iso: string): string {
  return new Date(`${iso}T00:00:00Z`).toLocaleDateString(translation.language, { dateStyle: "medium", timeZone: "UTC" });
}
