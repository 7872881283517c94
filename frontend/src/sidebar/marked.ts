import type { Snippet } from "../lib/types";

export interface Piece {
  text: string;
  marked: boolean;
}

/** A snippet in pieces. The text stays text: nothing of it becomes HTML. */
export function pieces({ text, marks }: Snippet): Piece[] {
  const result: Piece[] = [];
  let at = 0;
  for (const [start, end] of marks) {
    if (start < at || end <= start || end > text.length) continue;
    if (start > at) result.push({ text: text.slice(at, start), marked: false });
    result.push({ text: text.slice(start, end), marked: true });
    at = end;
  }
  if (at < text.length) result.push({ text: text.slice(at), marked: false });
  return result;
}
