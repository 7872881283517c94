import type { Style } from "./account";
import { numberIn } from "./numbers";
import type { Fields } from "./StyleFields.svelte";

export const EMPTY: Fields = { instructions: "", temperature: "", top_p: "", max_tokens: "" };

const text = (value: number | null): string => (value === null ? "" : String(value));

/** A stored style in the fields of a form. */
export function fieldsOf(style: Style): Fields {
  return {
    instructions: style.instructions,
    temperature: text(style.temperature),
    top_p: text(style.top_p),
    max_tokens: text(style.max_tokens),
  };
}

/** What the fields say; null if a number is not within its bounds. */
export function styleFrom(fields: Fields): Style | null {
  const temperature = numberIn(fields.temperature, 0, 2);
  const top_p = numberIn(fields.top_p, 0.001, 1);
  const max_tokens = numberIn(fields.max_tokens, 1, 32_768, true);
  if (temperature === undefined || top_p === undefined || max_tokens === undefined) return null;
  return { instructions: fields.instructions, temperature, top_p, max_tokens };
}
