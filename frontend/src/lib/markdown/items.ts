import type { ParsedBlock } from "./parser";

/**
 * The finished entries of a list, or rows of a table, that still grows at its end. Pure.
 *
 * With the next entry an entry is finished, as a block is with the next block. Only whether a list is loose (its
 * entries are paragraphs) depends on all of it: `head` tells the parser, and a list that turns loose begins anew.
 */
export interface FinishedItems {
  block: Pick<ParsedBlock, "type" | "marker" | "loose" | "open">;
  items: string[];
  /** The line on which each begins. */
  lines: number[];
  /** Their Markdown. */
  text: string;
  /** Markdown that stands for them when what follows is parsed. */
  head: string;
}

/** So many more items are finished before they are kept: doing so costs a parse of its own. */
const PORTION = 8;

/** Whether it is time to keep the finished items of a block. */
export function hasPortion(block: ParsedBlock, kept: FinishedItems | null): boolean {
  return block.loose !== null && block.items.length - (kept?.items.length ?? 0) > PORTION;
}

/** All items but the last of `block`, the only one of `text`, whose lines are whole. */
export function finishedItems(block: ParsedBlock, text: string): FinishedItems {
  const count = block.items.length - 1;
  return {
    block,
    items: block.items.slice(0, count),
    lines: block.lines.slice(0, count),
    text: text.slice(0, lineStart(text, block.lines[count] ?? 0)),
    head: isTable(block) ? text.slice(0, lineStart(text, 2)) : listHead(block),
  };
}

function isTable(block: Pick<ParsedBlock, "type">): boolean {
  return block.type === "table_open";
}

/** An entry to whose right none of the following ones can begin, as it would if it were part of it. */
function listHead({ type, marker, loose }: ParsedBlock): string {
  const entry = type === "ordered_list_open" ? `1${marker}   x\n` : `${marker}    x\n`;
  return loose ? `${entry}\n` : entry;
}

/** The block that `next`, parsed after the head of `kept`, is the end of; null if it belongs to another. */
export function continued(kept: FinishedItems, next: ParsedBlock | undefined): ParsedBlock | null {
  const { block, items, lines } = kept;
  if (next?.type !== block.type || next.marker !== block.marker || next.loose !== block.loose) return null;
  const heads = isTable(block) ? 0 : 1;
  const shift = lineCount(kept.text) - lineCount(kept.head);
  return {
    ...next,
    from: 0,
    to: next.to + shift,
    open: block.open,
    items: [...items, ...next.items.slice(heads)],
    lines: [...lines, ...next.lines.slice(heads).map((line) => line + shift)],
  };
}

export function lineCount(text: string): number {
  return text.split("\n").length;
}

/** Where a line begins. */
export function lineStart(text: string, line: number): number {
  let position = 0;
  for (let count = 0; count < line; count += 1) position = text.indexOf("\n", position) + 1;
  return position;
}
