import type { ConversationChange } from "../lib/api";
import type { ConversationSummary } from "../lib/types";

/** Which part of the list has a conversation: "main", "folder:NAME" or "archived". */
export function sectionOf(entry: ConversationSummary): string {
  if (entry.archived) return "archived";
  return entry.folder ? `folder:${entry.folder}` : "main";
}

/** Pinned ones first, then the newest, then the higher id: the order of the server. */
export function inOrder(left: ConversationSummary, right: ConversationSummary): number {
  if (left.pinned !== right.pinned) return left.pinned ? -1 : 1;
  const age = Date.parse(right.updated) - Date.parse(left.updated);
  return age || Number(right.id) - Number(left.id);
}

export function without(items: ConversationSummary[], id: string): ConversationSummary[] {
  return items.filter((item) => item.id !== id);
}

/** The items with this one at its place, in place of what they had of it. */
export function placed(items: ConversationSummary[], entry: ConversationSummary): ConversationSummary[] {
  const others = without(items, entry.id);
  const place = others.findIndex((item) => inOrder(entry, item) < 0);
  if (place < 0) return [...others, entry];
  return [...others.slice(0, place), entry, ...others.slice(place)];
}

/** The entry as it is now without a change that was refused; what was changed once more since stays. */
export function takenBack(now: ConversationSummary, before: ConversationSummary, change: ConversationChange): ConversationSummary {
  const refused = Object.entries(change).filter(([key, value]) => now[key as keyof ConversationChange] === value);
  const former = refused.map(([key]) => [key, before[key as keyof ConversationChange]]);
  return { ...now, ...(Object.fromEntries(former) as Partial<ConversationSummary>) };
}
