import type { MarkdownIt, StateInline } from "markdown-it";

const MARK = /^\[\^([^\s\]^[]{1,40})\](?!\()/;
const LONGEST = 50;

/** The mark of a footnote while the text grows: its note may be defined at the end, so it leads nowhere yet. */
export function pendingNotes(markdown: MarkdownIt): void {
  markdown.inline.ruler.before("link", "pending_note", pendingNote);
  markdown.renderer.rules["pending_note"] = (tokens, index) => {
    const label = tokens[index]?.content ?? "";
    return `<sup class="footnote-ref">[${markdown.utils.escapeHtml(label)}]</sup>`;
  };
}

function pendingNote(state: StateInline, silent: boolean): boolean {
  const match = MARK.exec(state.src.slice(state.pos, state.pos + LONGEST));
  if (!match) return false;
  if (!silent) state.push("pending_note", "sup", 0).content = match[1] ?? "";
  state.pos += match[0].length;
  return true;
}

/** Whether a text may have marks of footnotes. */
export function hasNotes(text: string): boolean {
  return text.includes("[^");
}
