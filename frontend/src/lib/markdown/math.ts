import type { MarkdownIt, StateBlock, StateInline } from "markdown-it";

/**
 * Formulas in Markdown: `$…$`, `\(…\)` in a line, `$$…$$`, `\[…\]` of their own.
 * They are recognised before Markdown's escapes, which would turn `\(` into `(` and `\,` into `,`.
 * What is no whole formula stays as it was written. KaTeX draws them later (`formulas.ts`).
 */
export function mathPlugin(markdown: MarkdownIt): void {
  markdown.inline.ruler.before("escape", "math", inlineMath);
  markdown.block.ruler.before("fence", "math", blockMath, { alt: ["paragraph", "reference", "blockquote", "list"] });
  const escape = markdown.utils.escapeHtml;
  markdown.renderer.rules["math"] = (tokens, index) => {
    const token = tokens[index];
    if (!token) return "";
    const [tag, end] = token.block ? ["div", "\n"] : ["span", ""];
    const display = token.info === "display" ? ' data-display="yes"' : "";
    return `<${tag} class="math" data-tex="${escape(token.content)}"${display}>${escape(token.markup)}</${tag}>${end}`;
  };
}

interface Delimiter {
  open: string;
  close: string;
  display: boolean;
}

/** The longer of two that begin alike comes first. */
const DELIMITERS: readonly Delimiter[] = [
  { open: "$$", close: "$$", display: true },
  { open: "$", close: "$", display: false },
  { open: "\\(", close: "\\)", display: false },
  { open: "\\[", close: "\\]", display: true },
];

function inlineMath(state: StateInline, silent: boolean): boolean {
  const delimiter = DELIMITERS.find(({ open }) => state.src.startsWith(open, state.pos));
  if (!delimiter) return false;
  const start = state.pos + delimiter.open.length;
  const end = closing(state.src.slice(0, state.posMax), start, delimiter.close);
  if (end < 0) return delimiter.open.startsWith("\\") && literal(state, delimiter.open, silent);
  const content = state.src.slice(start, end);
  if (content.trim() === "") return false;
  if (delimiter.open === "$" && !isFormula(state.src, start, end)) return false;
  if (!silent) {
    const token = state.push("math", "", 0);
    token.content = content.trim();
    token.markup = state.src.slice(state.pos, end + delimiter.close.length);
    token.info = delimiter.display ? "display" : "inline";
  }
  state.pos = end + delimiter.close.length;
  return true;
}

/** A `\(` without its end, as while the answer is being written, keeps its backslash. */
function literal(state: StateInline, text: string, silent: boolean): boolean {
  if (!silent) state.pending += text;
  state.pos += text.length;
  return true;
}

/** Where `close` stands from `start` on, not escaped; -1 if nowhere. */
function closing(text: string, start: number, close: string): number {
  let end = text.indexOf(close, start);
  while (end > 0 && isEscaped(text, end)) end = text.indexOf(close, end + 1);
  return end;
}

function isEscaped(text: string, position: number): boolean {
  let backslashes = 0;
  while (text[position - 1 - backslashes] === "\\") backslashes += 1;
  return backslashes % 2 === 1;
}

/** A price and the word after it: "5 apples and". */
const PRICE = /^[\d.,]+\s+[a-z]{2,}\b/i;

/** Whether what stands between two single dollar signs is a formula rather than a text with two prices. */
function isFormula(text: string, start: number, end: number): boolean {
  const content = text.slice(start, end);
  const before = text[start - 2] ?? " ";
  const after = text[end + 1] ?? " ";
  if (/\s/.test(content[0] ?? " ") || /\s/.test(content.at(-1) ?? " ")) return false;
  if (/[\w$]/.test(before) || /[\d$]/.test(after)) return false;
  return !content.includes("`") && !content.includes("\n\n") && !PRICE.test(content);
}

/**
 * A formula on lines of its own. It ends at its closing delimiter, or unfinished at an empty line. Its first line
 * decides whether it is one: what later lines bring must not change blocks before it, as these are drawn once
 * (`document.ts`).
 */
function blockMath(state: StateBlock, startLine: number, endLine: number, silent: boolean): boolean {
  const first = lineText(state, startLine);
  const delimiter = DELIMITERS.find(({ open, display }) => display && first.startsWith(open));
  if (!delimiter || indentation(state, startLine) >= 4) return false;
  const end = closing(first, delimiter.open.length, delimiter.close);
  // Words after the formula: the paragraph's own rule finds it there.
  if (end >= 0 && first.slice(end + delimiter.close.length).trim() !== "") return false;
  if (!silent) pushMath(state, readMath(state, startLine, endLine, delimiter), startLine);
  return true;
}

function lineText(state: StateBlock, line: number): string {
  return state.src.slice((state.bMarks[line] ?? 0) + (state.tShift[line] ?? 0), state.eMarks[line]);
}

function indentation(state: StateBlock, line: number): number {
  return (state.sCount[line] ?? 0) - state.blkIndent;
}

interface MathLines {
  /** With its delimiters. */
  source: string;
  /** Without them; null if it has no end. */
  content: string | null;
  /** What follows in the last line. */
  rest: string;
  nextLine: number;
}

function readMath(state: StateBlock, startLine: number, endLine: number, { open, close }: Delimiter): MathLines {
  const lines: string[] = [];
  for (let line = startLine; line < endLine; line += 1) {
    const text = lineText(state, line);
    if (line > startLine && (text.trim() === "" || indentation(state, line) < 0)) break;
    const end = closing(text, line === startLine ? open.length : 0, close);
    if (end < 0) {
      lines.push(text);
      continue;
    }
    const source = [...lines, text.slice(0, end + close.length)].join("\n");
    const content = source.slice(open.length, -close.length).trim();
    return { source, content, rest: text.slice(end + close.length).trim(), nextLine: line + 1 };
  }
  return { source: lines.join("\n"), content: null, rest: "", nextLine: startLine + lines.length };
}

function pushMath(state: StateBlock, { source, content, rest, nextLine }: MathLines, startLine: number): void {
  if (rest) state.push("math_text_open", "div", 1).map = [startLine, nextLine];
  const token = state.push(content === null ? "math_open" : "math", "", 0);
  token.block = true;
  token.map = [startLine, nextLine];
  token.markup = source;
  token.info = "display";
  token.content = content ?? "";
  if (rest) {
    state.push("paragraph_open", "p", 1);
    const inline = state.push("inline", "", 0);
    inline.content = rest;
    inline.map = [nextLine - 1, nextLine];
    inline.children = [];
    state.push("paragraph_close", "p", -1);
    state.push("math_text_close", "div", -1);
  }
  state.line = nextLine;
}
