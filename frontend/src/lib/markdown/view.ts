import { type Block, GrowingDocument } from "./document";
import { drawDiagram } from "./diagrams";
import { drawFormulas } from "./formulas";
import { highlight } from "./highlight";
import { htmlOf } from "./parser";
import { safeNodes } from "./sanitize";

/** Letters, digits and blanks: added to a paragraph that ends in such, they change nothing before them. */
const PLAIN = /^[\p{L}\p{N} ,]*$/u;
const ENDS_PLAIN = /[\p{L}\p{N},]$/u;

const KEPT_COLOURINGS = 100;
const colourings = new Map<string, Promise<string | null>>();

interface Shown {
  block: Block;
  element: HTMLElement;
  /** Text was added to its nodes since they were made from the block's HTML. */
  extended: boolean;
}

/**
 * A Markdown text as nodes in `root`, kept in step with a text that grows: blocks that are finished stay as they are,
 * and only the last one is drawn again. Code is coloured, and diagrams are drawn, when their block is complete.
 */
export class MarkdownView {
  readonly #root: HTMLElement;
  readonly #document: GrowingDocument;
  #shown: Shown[] = [];

  constructor(root: HTMLElement, docId: string) {
    this.#root = root;
    this.#document = new GrowingDocument(docId);
  }

  /** Show `text`, which still grows or is whole. */
  update(text: string, growing: boolean): void {
    const blocks = this.#document.update(text, growing);
    let first = this.#firstChange(blocks);
    this.#finishUnchanged(blocks, first);
    const only = first === this.#shown.length - 1 && first === blocks.length - 1;
    if (only && growing && this.#append(first, blocks[first])) return;
    if (this.#changeItems(first, blocks[first])) first += 1;
    for (const { element } of this.#shown.splice(first)) element.remove();
    this.#show(blocks.slice(first));
  }

  #firstChange(blocks: Block[]): number {
    const changed = this.#shown.findIndex((shown, index) => !isSame(shown, blocks[index]));
    return changed < 0 ? this.#shown.length : changed;
  }

  /** Blocks that are as they were, but complete now. */
  #finishUnchanged(blocks: Block[], end: number): void {
    for (const [index, shown] of this.#shown.slice(0, end).entries()) {
      const block = blocks[index];
      if (block?.final && !shown.block.final) finish(shown.element);
      if (block) shown.block = block;
    }
  }

  /** All in one pass of the sanitizer, which has its price each time. */
  #show(blocks: Block[]): void {
    const html = blocks.map((block) => `<div class="block">${htmlOf(block)}</div>`);
    const elements = [...safeNodes(html.join("")).children];
    for (const [index, block] of blocks.entries()) {
      const element = elements[index];
      if (!(element instanceof HTMLElement)) continue;
      this.#root.append(element);
      this.#shown.push({ block, element, extended: false });
      drawFormulas(element);
      if (block.final) finish(element);
    }
  }

  /** A list or a table keeps its entries and rows up to the first that is another one. */
  #changeItems(index: number, block: Block | undefined): boolean {
    const shown = this.#shown[index];
    const place = shown && itemsPlace(shown.element, shown.block);
    if (!place || block?.type !== shown.block.type || block.open !== shown.block.open) return false;
    const count = sameItems(shown.block, block);
    if (count === 0) return false;
    removeFrom(place, count);
    const rest = safeNodes(block.open + block.items.slice(count).join("") + block.close);
    const added = [...(itemsPlace(rest, block)?.children ?? [])];
    for (const element of added) place.append(element, "\n");
    for (const element of added) drawFormulas(element);
    shown.block = block;
    if (block.final) finish(shown.element);
    return true;
  }

  /** Words added to the last paragraph, or lines to the last code, go into the text node that is there. */
  #append(index: number, block: Block | undefined): boolean {
    const shown = this.#shown[index];
    if (!shown || !block || block.final || shown.block.type !== block.type) return false;
    const added = block.type === "fence" ? addedCode(shown, block) : addedWords(shown, block);
    if (added === null) return false;
    added.node.appendData(added.text);
    shown.block = block;
    shown.extended = true;
    return true;
  }
}

function isSame(shown: Shown, block: Block | undefined): boolean {
  if (!block || shown.block.open !== block.open || shown.block.close !== block.close) return false;
  const count = sameItems(shown.block, block);
  if (count < shown.block.items.length || count < block.items.length) return false;
  return shown.block.final === block.final || !shown.extended;
}

/** How many items at the beginning of both are the same. */
function sameItems(before: Block, now: Block): number {
  const changed = before.items.findIndex((item, index) => item !== now.items[index]);
  return changed < 0 ? before.items.length : changed;
}

/** The element that the items of a shown block stand in; null if it has none. */
function itemsPlace(root: ParentNode, block: Block): Element | null {
  if (block.items.length === 0) return null;
  return block.type === "table_open" ? root.querySelector("tbody") : root.firstElementChild;
}

/** Remove an element's children from the given one on. */
function removeFrom(place: Element, index: number): void {
  let node: ChildNode | null = place.children[index] ?? null;
  while (node) {
    const next: ChildNode | null = node.nextSibling;
    node.remove();
    node = next;
  }
}

interface Addition {
  node: Text;
  text: string;
}

function addedWords({ block: before, element }: Shown, block: Block): Addition | null {
  const [old, now] = [before.source.trimEnd(), block.source.trimEnd()];
  if (block.type !== "paragraph_open" || !now.startsWith(old) || !ENDS_PLAIN.test(old)) return null;
  const text = now.slice(old.length);
  const node = element.firstElementChild?.lastChild;
  if (!PLAIN.test(text) || !(node instanceof Text)) return null;
  return { node, text };
}

function addedCode({ block: before, element }: Shown, block: Block): Addition | null {
  const [old, now] = [codeOf(before), codeOf(block)];
  const node = element.querySelector("code")?.firstChild;
  if (old === null || now === null || !(node instanceof Text) || node.data.length === 0) return null;
  if (!now.startsWith(node.data)) return null;
  return { node, text: now.slice(node.data.length) };
}

/** The code of a block that is not closed yet; null if it may be, or is not that simple. */
function codeOf(block: Block): string | null {
  const lines = block.source.split("\n");
  const fence = /^(`{3,}|~{3,})/.exec(lines[0] ?? "")?.[1];
  const last = lines.at(-1)?.trim() ?? "";
  if (!fence || lines.length < 2 || (last !== "" && fence.startsWith(last.slice(0, 1)))) return null;
  return lines.slice(1).join("\n");
}

/** Colour the code and draw the diagrams of a block that changes no more. */
function finish(element: HTMLElement): void {
  for (const code of element.querySelectorAll<HTMLElement>("code[data-language]")) {
    const block = code.closest<HTMLElement>(".code");
    if (block?.classList.contains("diagram")) void drawDiagram(block);
    else if (code.dataset["language"]) void colour(code, code.dataset["language"]);
  }
}

async function colour(code: HTMLElement, language: string): Promise<void> {
  const source = code.textContent;
  const html = await coloured(source, language).catch(() => null); // a language that did not load: plain
  if (html !== null && code.textContent === source) code.innerHTML = html;
}

/** Highlighted HTML, remembered: the last block of an answer is drawn once more when it ends. */
function coloured(source: string, language: string): Promise<string | null> {
  const key = `${language}\n${source}`;
  const known = colourings.get(key);
  if (known) return known;
  if (colourings.size >= KEPT_COLOURINGS) colourings.clear();
  const colouring = highlight(source, language);
  colourings.set(key, colouring);
  return colouring;
}
