/** Long messages of one's own are folded: a pasted file must not push the conversation out of sight. */
const LINES = 12;
const CHARACTERS = 1200;
const CHARACTERS_A_LINE = 60;

export function isLong(content: string): boolean {
  return content.length > CHARACTERS || content.split("\n", LINES + 1).length > LINES;
}

/** About the part that shows while it is folded. */
export function shownPart(content: string): string {
  if (!isLong(content)) return content;
  return content.split("\n", LINES).join("\n").slice(0, LINES * CHARACTERS_A_LINE);
}
