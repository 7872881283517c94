export type Command = "search" | "help" | "newChat" | "composer" | "list";

/** Whether the keys that somebody presses are text for a field. */
function isTyping(target: EventTarget | null): boolean {
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
}

/** What the keys ask for; null for all others. Letters alone count only where nobody types. */
export function shortcutOf(event: KeyboardEvent): Command | null {
  if (event.isComposing || document.querySelector("dialog[open]")) return null;
  const command = event.ctrlKey || event.metaKey;
  const key = event.key.toLowerCase();
  if (command && !event.altKey && !event.shiftKey && key === "k") return "search";
  if (command && event.shiftKey && key === "o") return "newChat";
  if (command || event.altKey || isTyping(event.target)) return null;
  if (event.key === "?") return "help";
  if (event.key === "/") return "composer";
  if (key === "g") return "list";
  return null;
}
