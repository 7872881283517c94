import { type FinishedItems, continued, finishedItems, hasPortion, lineCount, lineStart } from "./items";
import { hasNotes } from "./notes";
import { type Environment, type ParsedBlock, parse } from "./parser";

export interface Block extends ParsedBlock {
  /** The Markdown of the block. */
  source: string;
  /** Nothing that follows can change the block any more. */
  final: boolean;
}

/** Definitions that blocks before them may use: of links, and of footnotes. */
const DEFINITION = /^ {0,3}\[[^\]\n]+\]:/m;

/**
 * The blocks of a text that grows at its end.
 *
 * Finished blocks are parsed once. In Markdown a block is finished when a line that belongs to a later one is whole;
 * the beginning of such a line does not suffice ("2" opens a paragraph, "2. x" goes on with the list above it).
 * So are the finished items of a list or a table that is the last block (`items.ts`).
 * Blocks that refer to definitions further down are parsed again when the text is whole.
 */
export class GrowingDocument {
  #env: Environment;
  readonly #docId: string;
  #finished: Block[] = [];
  /** The text of the finished blocks. */
  #prefix = "";
  /** At the beginning of what follows. */
  #items: FinishedItems | null = null;

  constructor(docId: string) {
    this.#docId = docId;
    this.#env = { docId };
  }

  /** The blocks of `text`. While it is `growing`, only those at its end are others than before. */
  update(text: string, growing: boolean): Block[] {
    const normal = text.replace(/\r\n?/g, "\n");
    if (!normal.startsWith(this.#prefix)) this.#reset();
    if (!growing && (DEFINITION.test(normal) || hasNotes(normal))) return this.#parseWhole(normal);
    const tail = normal.slice(this.#prefix.length);
    if (!growing || !tail.startsWith(this.#items?.text ?? "")) this.#items = null;
    const blocks = this.#parseTail(tail);
    if (!growing) return [...this.#finished, ...blocks.map(finalBlock)];
    const count = finishedCount(blocks, lineCount(tail));
    this.#keep(blocks.slice(0, count), tail, blocks[count]?.from ?? 0);
    const open = blocks.slice(count);
    if (open[0] && hasPortion(open[0], this.#items)) this.#keepItems(normal.slice(this.#prefix.length));
    return [...this.#finished, ...open];
  }

  #reset(): void {
    this.#finished = [];
    this.#prefix = "";
    this.#items = null;
    this.#env = { docId: this.#docId };
  }

  #parseWhole(text: string): Block[] {
    this.#reset();
    return withSources(parse(text, { docId: this.#docId }, true), text).map(finalBlock);
  }

  #parseTail(tail: string): Block[] {
    const env = { ...this.#env, references: { ...this.#env.references } };
    const kept = this.#items;
    if (!kept) return withSources(parse(tail, env, false), tail);
    const [first, ...others] = parse(kept.head + tail.slice(kept.text.length), env, false);
    const block = continued(kept, first);
    if (block) {
      const shift = block.to - (first?.to ?? 0);
      return withSources([block, ...others.map((other) => moved(other, shift))], tail);
    }
    this.#items = null;
    return this.#parseTail(tail);
  }

  #keep(blocks: Block[], tail: string, nextLine: number): void {
    if (blocks.length === 0) return;
    const end = lineStart(tail, nextLine);
    const text = tail.slice(0, end);
    if (DEFINITION.test(text)) parse(text, this.#env, false); // for its definitions
    this.#finished = [...this.#finished, ...blocks.map(finalBlock)];
    this.#prefix += text;
    this.#items = null;
  }

  /** Keep the finished items of the last block, if it is a list or a table without definitions. */
  #keepItems(tail: string): void {
    const whole = tail.slice(0, tail.lastIndexOf("\n") + 1);
    if (DEFINITION.test(whole)) return;
    const [block, ...others] = this.#parseTail(whole);
    if (block && others.length === 0 && hasPortion(block, this.#items)) this.#items = finishedItems(block, whole);
  }
}

function finalBlock(block: Block): Block {
  return { ...block, final: true };
}

function moved(block: ParsedBlock, lines: number): ParsedBlock {
  return { ...block, from: block.from + lines, to: block.to + lines };
}

/** How many blocks at the beginning are finished, in a text of so many lines, the last of them incomplete. */
function finishedCount(blocks: Block[], lines: number): number {
  const open = blocks.findLastIndex((block) => block.from < lines - 1);
  return Math.max(0, open);
}

function withSources(parsed: ParsedBlock[], text: string): Block[] {
  const lines = text.split("\n");
  return parsed.map((block) => ({
    ...block,
    source: block.from === Infinity ? "" : lines.slice(block.from, block.to).join("\n"),
    final: false,
  }));
}
