import type { MarkdownIt, StateCore, Token } from "markdown-it";
import { t } from "../i18n.svelte";

const BOX = /^\[([ xX])\]\s+/;

/** Task lists: `- [ ] text` and `- [x] text` get a box, which shows and does not change. */
export function taskPlugin(markdown: MarkdownIt): void {
  markdown.core.ruler.after("inline", "tasks", markTasks);
  markdown.renderer.rules["task"] = (tokens, index) => {
    const done = tokens[index]?.info === "done";
    const label = markdown.utils.escapeHtml(t(done ? "markdown.done" : "markdown.open"));
    return `<input type="checkbox" class="task" aria-label="${label}" disabled${done ? " checked" : ""}> `;
  };
}

function markTasks(state: StateCore): void {
  for (const [index, token] of state.tokens.entries()) {
    const item = state.tokens[index - 2];
    if (token.type !== "inline" || item?.type !== "list_item_open") continue;
    const box = BOX.exec(token.content);
    const text = token.children?.[0];
    if (!box || text?.type !== "text") continue;
    text.content = text.content.replace(BOX, "");
    token.children?.unshift(boxToken(state, box[1] !== " "));
    item.attrJoin("class", "task-item");
  }
}

function boxToken(state: StateCore, done: boolean): Token {
  const token = new state.Token("task", "", 0);
  token.info = done ? "done" : "open";
  return token;
}
