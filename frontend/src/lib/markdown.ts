import DOMPurify from "dompurify";
import MarkdownIt, { type Token } from "markdown-it";
import { highlight } from "./highlight";

/** Models write Markdown; raw HTML in it stays text. */
const markdown = new MarkdownIt({ html: false, linkify: true, breaks: true });

/** Links open elsewhere, and do not say where they were followed from. */
const LINK = 'target="_blank" rel="noopener noreferrer nofollow"';

const escape = markdown.utils.escapeHtml;

function codeBlock(source: string, language: string): string {
  const label = language ? escape(language) : "text";
  return (
    `<div class="code"><div class="code-head"><span>${label}</span>` +
    `<button type="button" class="code-copy" data-copy>Copy</button></div>` +
    `<pre tabindex="0"><code class="hljs">${highlight(source, language) ?? escape(source)}</code></pre></div>`
  );
}

markdown.renderer.rules["fence"] = (tokens, index) => {
  const token = tokens[index];
  return token ? codeBlock(token.content, token.info.trim().split(/\s+/)[0] ?? "") : "";
};
markdown.renderer.rules["code_block"] = (tokens, index) => codeBlock(tokens[index]?.content ?? "", "");
// An image becomes a link: fetched without being asked, it would tell its host who reads, and what the model put in its address.
markdown.renderer.rules["image"] = (tokens, index) => {
  const token = tokens[index];
  const address = escape(String(token?.attrGet("src") ?? ""));
  return `<a href="${address}" ${LINK}>${escape(token?.content ?? "") || address}</a>`;
};
markdown.renderer.rules["table_open"] = () => '<div class="table" tabindex="0"><table>';
markdown.renderer.rules["table_close"] = () => "</table></div>";
markdown.renderer.rules["link_open"] = (tokens, index) => `<a href="${escape(String(tokens[index]?.attrGet("href") ?? ""))}" ${LINK}>`;

/** The top-level blocks of a token list, each with its own tokens. */
function topLevel(tokens: Token[]): Token[][] {
  const blocks: Token[][] = [];
  let current: Token[] = [];
  for (const token of tokens) {
    current.push(token);
    if (token.level === 0 && token.nesting <= 0) {
      blocks.push(current);
      current = [];
    }
  }
  return current.length ? [...blocks, current] : blocks;
}

/**
 * HTML of each top-level block of a Markdown text, not yet sanitized.
 * By block, because a growing answer then changes only its last one.
 */
export function renderBlocks(text: string): string[] {
  const env = {};
  return topLevel(markdown.parse(text, env)).map((tokens) => markdown.renderer.render(tokens, markdown.options, env));
}

const KEPT_BLOCKS = 400;
const kept = new Map<string, string>();

/** Sanitized HTML, remembered: while an answer grows, its finished blocks come round at every step. */
function sanitize(html: string): string {
  const known = kept.get(html);
  if (known !== undefined) return known;
  const clean = DOMPurify.sanitize(html, { ADD_ATTR: ["target"], FORBID_ATTR: ["style"], FORBID_TAGS: ["style", "form", "img"] });
  if (kept.size >= KEPT_BLOCKS) kept.clear();
  kept.set(html, clean);
  return clean;
}

/** Safe HTML for `{@html}`, one string a top-level block. */
export function safeBlocks(text: string): string[] {
  return renderBlocks(text).map(sanitize);
}
