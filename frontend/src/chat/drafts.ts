import { session } from "../lib/session.svelte";
import { TextStore } from "../lib/textstore";
import type { Attachment } from "../lib/types";

/** What somebody typed and has not sent, by conversation, so that no error, detour or reload loses it. */
const NEW = "new";
const BOUNDS = { count: 50, characters: 500_000 };
const TYPING_MS = 250;
const MAX_QUEUED = 5;

/** A message that is sent when the running answer has ended. */
export interface QueuedMessage {
  text: string;
  attachments: Attachment[];
  /** The answer that it was written after, of the first that waits. */
  after: string | null;
}

/** Several people may use one browser. */
export function mine(conversation: string | null): string {
  return `${session.user?.name ?? ""}/${conversation ?? NEW}`;
}

const drafts = new TextStore("canopy.drafts", BOUNDS, TYPING_MS);
const attached = new TextStore("canopy.attachments", BOUNDS);

let shared = "";

/** A text that another app shares becomes the draft of a new conversation, as soon as its reader is known. */
export function shareDraft(text: string): void {
  shared = text;
}

export function draftOf(conversation: string | null): string {
  if (conversation === null && shared) {
    keepDraft(null, shared);
    shared = "";
  }
  return drafts.get(mine(conversation));
}

export function keepDraft(conversation: string | null, text: string): void {
  drafts.set(mine(conversation), text);
}

export function attachmentsOf(conversation: string | null): Attachment[] {
  attached.reload(); // another tab may have sent them
  return listIn(attached.get(mine(conversation))).filter(isAttachment);
}

/** False where the browser has no room for them, so that a reload loses them. */
export function keepAttachments(conversation: string | null, attachments: Attachment[]): boolean {
  attached.reload(); // what other tabs keep stays
  attached.set(mine(conversation), stored(attachments));
  return attached.isStored;
}

/** It is sent. */
export function forgetDraft(conversation: string | null): void {
  keepDraft(conversation, "");
  keepAttachments(conversation, []);
}

const queued = new TextStore("canopy.queue", BOUNDS);

export function queueOf(conversation: string): QueuedMessage[] {
  queued.reload(); // another tab may have sent them
  return listIn(queued.get(mine(conversation))).map(queuedMessage).filter((message) => message !== null).slice(0, MAX_QUEUED);
}

export function keepQueue(conversation: string, messages: QueuedMessage[]): void {
  queued.set(mine(conversation), stored(messages));
}

/** Whether one more fits. */
export function hasRoom(messages: QueuedMessage[]): boolean {
  return messages.length < MAX_QUEUED;
}

function stored(list: unknown[]): string {
  return list.length > 0 ? JSON.stringify(list) : "";
}

/** Nothing in the browser's storage is trusted. */
function listIn(text: string): unknown[] {
  try {
    const list: unknown = JSON.parse(text || "[]");
    return Array.isArray(list) ? list : [];
  } catch {
    return [];
  }
}

function isAttachment(value: unknown): value is Attachment {
  const { name, text } = (value ?? {}) as Partial<Attachment>;
  return typeof name === "string" && typeof text === "string";
}

function queuedMessage(value: unknown): QueuedMessage | null {
  if (typeof value === "string") return { text: value, attachments: [], after: null }; // of a former release
  const { text, attachments, after } = (value ?? {}) as Partial<QueuedMessage>;
  if (typeof text !== "string" || !Array.isArray(attachments)) return null;
  return { text, attachments: attachments.filter(isAttachment), after: typeof after === "string" ? after : null };
}
