/** What somebody typed and has not sent, by conversation. Kept in memory, so that no error and no detour loses it. */
const drafts = new Map<string, string>();
const NEW = "";

export function draftOf(conversation: string | null): string {
  return drafts.get(conversation ?? NEW) ?? "";
}

export function keepDraft(conversation: string | null, text: string): void {
  if (text) drafts.set(conversation ?? NEW, text);
  else drafts.delete(conversation ?? NEW);
}
