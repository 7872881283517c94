import createMarkdownIt, { type Env, type MarkdownIt, type RendererRule, type Token } from "markdown-it";
import footnotes from "markdown-it-footnote";
import { t } from "../i18n.svelte";
import { mathPlugin } from "./math";
import { pendingNotes } from "./notes";
import { taskPlugin } from "./tasks";

/** Links open elsewhere, and do not say where they were followed from. */
const LINK = 'target="_blank" rel="noopener noreferrer nofollow"';

/** Where a link may lead. Not into this site: its addresses do things, and a model has no business there. */
const ADDRESS = /^(https?:|mailto:)/i;

/** What a text's blocks share. `docId` makes the names of footnotes unique on the page. */
export interface Environment extends Env {
  docId: string;
}

/** Models write Markdown; raw HTML in it stays text. */
function create(): MarkdownIt {
  const markdown = createMarkdownIt({ html: false, linkify: true, breaks: true });
  markdown.use(mathPlugin).use(taskPlugin);
  markdown.validateLink = (address) => ADDRESS.test(address.trim());
  Object.assign(markdown.renderer.rules, rules(markdown));
  return markdown;
}

function rules(markdown: MarkdownIt): Record<string, RendererRule> {
  const escape = markdown.utils.escapeHtml;
  const attribute = (token: Token | undefined, name: string): string => escape(String(token?.attrGet(name) ?? ""));
  const cell: RendererRule = (tokens, index) => `<${tokens[index]?.tag ?? "td"}${alignment(tokens[index])}>`;
  return {
    fence: (tokens, index) => codeBlock(tokens[index], tokens[index]?.info ?? "", escape),
    code_block: (tokens, index) => codeBlock(tokens[index], "", escape),
    math_open: (tokens, index) => `<p class="source">${escape(tokens[index]?.markup ?? "")}</p>`,
    // An image becomes a link: fetched without being asked, it would tell its host who reads, and what the model
    // put in its address.
    image: (tokens, index) => {
      const address = attribute(tokens[index], "src");
      return `<a href="${address}" ${LINK}>${escape(tokens[index]?.content ?? "") || address}</a>`;
    },
    link_open: (tokens, index) => `<a href="${attribute(tokens[index], "href")}" ${LINK}>`,
    table_open: () => '<div class="table" tabindex="0"><table>',
    table_close: () => "</table></div>",
    th_open: cell,
    td_open: cell,
  };
}

/** markdown-it writes a style; ours are classes. */
function alignment(token: Token | undefined): string {
  const side = /text-align:(\w+)/.exec(String(token?.attrGet("style") ?? ""))?.[1];
  return side ? ` class="${side}"` : "";
}

/** A block of code with its language and a button; `diagram` if Mermaid may draw it. */
function codeBlock(token: Token | undefined, info: string, escape: (text: string) => string): string {
  const language = info.trim().split(/\s+/)[0] ?? "";
  const label = language ? escape(language) : escape(t("markdown.text"));
  const copy = escape(t("markdown.copy"));
  const isDiagram = language.toLowerCase() === "mermaid";
  const toggle = isDiagram ? `<button type="button" data-source>${escape(t("markdown.source"))}</button>` : "";
  return (
    `<div class="code${isDiagram ? " diagram" : ""}"><div class="code-head"><span>${label}</span>` +
    `${toggle}<button type="button" data-copy>${copy}</button></div>` +
    `<pre tabindex="0"><code data-language="${escape(language)}">${escape(token?.content ?? "")}</code></pre></div>\n`
  );
}

const plain = create();
plain.use(pendingNotes);
const complete = create();
complete.use(footnotes);
complete.inline.ruler.disable("footnote_inline"); // `2^[3]` is a power more often than a note
complete.renderer.rules["footnote_block_open"] = () => '<section class="footnotes"><ol>\n';

/**
 * A top-level block: its lines `[from, to)` in the text, and its HTML: `items` between `open` and `close`.
 * The items are the entries of a list or the rows of a table's body; other blocks have none.
 */
export interface ParsedBlock {
  from: number;
  to: number;
  type: string;
  open: string;
  items: string[];
  close: string;
  /** The line on which each item begins. */
  lines: number[];
  /** What entries of a list begin with. */
  marker: string;
  /** Whether the entries of a list are paragraphs; null if none says so. */
  loose: boolean | null;
}

/** The top-level blocks of a token list, each with its own tokens. Footnotes' tokens have no levels, so we count. */
function topLevel(tokens: Token[]): Token[][] {
  const blocks: Token[][] = [];
  let current: Token[] = [];
  let depth = 0;
  for (const token of tokens) {
    current.push(token);
    depth += token.nesting;
    if (depth === 0) {
      blocks.push(current);
      current = [];
    }
  }
  return blocks;
}

/** Where each item begins among the tokens of a block, and where the last one ends. */
function itemBounds(tokens: Token[]): number[] {
  const type = tokens[0]?.type;
  const isTable = type === "table_open";
  if (!isTable && type !== "bullet_list_open" && type !== "ordered_list_open") return [];
  const body = isTable ? tokens.findIndex((token) => token.type === "tbody_open") : 0;
  if (body < 0) return [];
  const [item, level] = isTable ? ["tr_open", 2] : ["list_item_open", 1];
  const bounds: number[] = [];
  for (const [index, token] of tokens.entries()) {
    if (index > body && token.type === item && token.level === level) bounds.push(index);
  }
  bounds.push(tokens.length - (isTable ? 2 : 1));
  return bounds;
}

/** An entry's own paragraphs show no tags in a tight list. */
function looseness(tokens: Token[]): boolean | null {
  if (tokens[0]?.type === "table_open") return false;
  const paragraph = tokens.find((token) => token.type === "paragraph_open" && token.level === 2);
  return paragraph ? !paragraph.hidden : null;
}

function parsedBlock(tokens: Token[], render: (tokens: Token[]) => string): ParsedBlock {
  const first = tokens[0];
  const [from, to] = first?.map ?? [Infinity, Infinity];
  const bounds = itemBounds(tokens);
  const starts = bounds.slice(0, -1);
  return {
    from,
    to,
    type: first?.type ?? "",
    open: render(tokens.slice(0, bounds[0])),
    items: starts.map((start, index) => render(tokens.slice(start, bounds[index + 1]))),
    close: bounds.length > 0 ? render(tokens.slice(bounds.at(-1))) : "",
    lines: starts.map((start) => tokens[start]?.map?.[0] ?? 0),
    marker: first?.markup ?? "",
    loose: looseness(tokens),
  };
}

/** The HTML of a whole block. */
export function htmlOf({ open, items, close }: Pick<ParsedBlock, "open" | "items" | "close">): string {
  return open + items.join("") + close;
}

/**
 * The top-level blocks of a text, not yet sanitized. Link definitions are read from and added to `env`.
 * With `notes`, footnotes are known: only a whole text can have them, as they may be defined at its end.
 */
export function parse(text: string, env: Environment, notes: boolean): ParsedBlock[] {
  const markdown = notes ? complete : plain;
  const render = (tokens: Token[]): string => markdown.renderer.render(tokens, markdown.options, env);
  return topLevel(markdown.parse(text, env)).map((tokens) => parsedBlock(tokens, render));
}
