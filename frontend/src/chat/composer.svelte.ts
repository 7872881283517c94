import { withTexts } from "../lib/i18n.svelte";
import { toasts } from "../lib/toasts.svelte";
import type { Attachment } from "../lib/types";
import type { OpenConversation } from "./conversation.svelte";
import { attachmentsOf, draftOf, hasRoom, keepAttachments, keepDraft, keepQueue, queueOf, type QueuedMessage } from "./drafts";

type Reading = typeof import("../attachments/reading");

/** The server's limit, in characters as people count them, of a message with its attachments. */
export const MAX_CHARACTERS = 100_000;
/** A text that is pasted becomes an attachment from this length on. */
const LONG_PASTE = 2_000;

/** How many characters a text has, with what is attached to it, if that is too many; else null. */
export function tooLong(text: string, attachments: Attachment[] = []): number | null {
  const texts = [text, ...attachments.map((attachment) => attachment.text)];
  const units = texts.reduce((sum, { length }) => sum + length, 0);
  if (units <= MAX_CHARACTERS) return null;
  const count = texts.reduce((sum, each) => sum + Array.from(each).length, 0);
  return count > MAX_CHARACTERS ? count : null;
}

/** What is being written, and what waits to be sent: kept per conversation, across reloads. */
export class ComposerStore {
  text = $state("");
  attachments = $state.raw<Attachment[]>([]);
  /** The browser has room for the attachments, so that they survive a reload. */
  attachmentsKept = $state(true);
  /** Messages that follow when the running answer has ended. */
  queue = $state.raw<QueuedMessage[]>([]);
  /** The first of them is in the conversation already. */
  firstIsSent = $derived.by(() => {
    const [first] = this.queue;
    return first?.after ? this.chat.isFollowed(first.after, first.text) : false;
  });
  #conversation: string | null = null;
  /** Ends when every file and pasted text has been read and attached. */
  #reading: Promise<void> = Promise.resolve();

  constructor(readonly chat: OpenConversation) {}

  running = $derived.by(() => this.chat.running.length > 0);
  empty = $derived(this.text.trim() === "" && this.attachments.length === 0);
  /** Its length, if that is more than one message may have. */
  excess = $derived(tooLong(this.text.trim(), this.attachments));
  ready = $derived.by(() => !this.empty && this.excess === null && !this.chat.sending && this.chat.state === "ready");
  /** Whether the text can be queued. */
  canQueue = $derived.by(() => this.ready && this.running && hasRoom(this.queue));

  /** Another conversation is open (null: a new one). */
  open(conversation: string | null): void {
    this.#conversation = conversation;
    this.#readDraft();
    this.attachmentsKept = true;
    this.queue = conversation === null ? [] : queueOf(conversation);
  }

  set(text: string): void {
    this.text = text;
    keepDraft(this.#conversation, text);
  }

  setAttachments(attachments: Attachment[]): void {
    this.attachments = attachments;
    this.attachmentsKept = keepAttachments(this.#conversation, attachments);
  }

  /** Attach the files that are texts; of the others it is said why they are not. */
  attach(files: Iterable<File>): Promise<void> {
    const list = [...files]; // a drop's list is empty in the next turn
    return this.#attachInTurn(async ({ readFiles }, attached) => {
      const { texts, problems } = await readFiles(list, this.text.trim(), attached);
      if (problems.length > 0) toasts.show(problems.join(" "));
      return texts;
    });
  }

  /** Attach a text that is long, in place of filling the field; false where it belongs into the field. */
  attachPasted(text: string): boolean {
    if (text.length < LONG_PASTE || text.trim() === "") return false;
    if (tooLong(this.text + text, this.attachments) !== null) return false; // there it is said how long it is
    const conversation = this.#conversation;
    this.#attachInTurn(({ pastedText }, attached) => Promise.resolve([pastedText(text, attached)])).catch(() => {
      // The code did not load: into the field, after all.
      if (this.#conversation === conversation) this.set(this.text + text);
      else keepDraft(conversation, draftOf(conversation) + text);
    });
    return true;
  }

  /** Add to the conversation that is open now, whichever is open when they have been read. */
  #attachInTurn(read: (reading: Reading, attached: Attachment[]) => Promise<Attachment[]>): Promise<void> {
    const conversation = this.#conversation;
    const added = this.#reading.then(async () => {
      const reading = await withTexts("attachments", import("../attachments/reading"));
      const isOpen = (): boolean => this.#conversation === conversation;
      const attached = (): Attachment[] => (isOpen() ? this.attachments : attachmentsOf(conversation));
      const texts = await read(reading, attached());
      const all = [...attached(), ...texts];
      if (isOpen()) this.setAttachments(all);
      else keepAttachments(conversation, all);
    });
    this.#reading = added.catch(() => undefined); // who attaches reports it
    return added;
  }

  /** Send the text, or queue it while an answer runs. */
  async submit(): Promise<void> {
    if (!this.ready) return;
    const conversation = this.#conversation;
    await this.#reading; // a file that was chosen belongs to the message
    if (!this.ready || this.#conversation !== conversation) return;
    if (this.running) return this.#enqueue();
    const written = this.attachments;
    const sent = await this.chat.send(this.text.trim(), written);
    const added = this.attachments.filter((attachment) => !written.includes(attachment)); // meanwhile
    // Sent: the draft is gone. Refused: it is still there, whichever conversation is open now.
    this.#readDraft();
    if (sent && added.length > 0) this.setAttachments(added);
  }

  #readDraft(): void {
    this.text = draftOf(this.#conversation);
    this.attachments = attachmentsOf(this.#conversation);
  }

  #enqueue(): void {
    const queue = this.#conversation === null ? this.queue : queueOf(this.#conversation); // another tab may have added one
    if (!hasRoom(queue)) return;
    const after = queue.length === 0 ? (this.chat.current?.head ?? null) : null;
    this.#setQueue([...queue, { text: this.text.trim(), attachments: this.attachments, after }]);
    this.set("");
    this.setAttachments([]);
  }

  /** Another tab may have sent or removed messages since they were shown. */
  readQueue(): void {
    if (this.#conversation !== null) this.queue = queueOf(this.#conversation);
  }

  remove(index: number): void {
    const shown = JSON.stringify(this.queue[index]);
    this.readQueue();
    const place = this.queue.findIndex((message) => JSON.stringify(message) === shown);
    if (place >= 0) this.#setQueue(this.queue.toSpliced(place, 1));
  }

  /** Back into the field, in place of what is there. */
  takeBack(index: number): void {
    const message = this.queue[index];
    if (message === undefined) return;
    this.remove(index);
    this.set(this.text.trim() ? `${message.text}\n\n${this.text}` : message.text);
    this.setAttachments([...message.attachments, ...this.attachments]);
  }

  /** Another tab may have sent the first message that waits, and been closed before it could say so. */
  dropSent(): void {
    if (this.firstIsSent && this.#conversation === this.chat.id) this.remove(0);
  }

  /** Send the first message that waits. Refused, it waits on. */
  async sendNext(): Promise<void> {
    const conversation = this.#conversation;
    if (conversation === null || this.running || this.chat.sending) return;
    const [next, ...rest] = queueOf(conversation); // another tab may have sent it
    this.#setQueue(rest);
    if (next === undefined) return;
    const sent = await this.chat.sendQueued(next);
    if (!sent) keepQueue(conversation, [next, ...queueOf(conversation)]);
    if (this.#conversation === conversation) this.queue = queueOf(conversation);
  }

  #setQueue(messages: QueuedMessage[]): void {
    this.queue = messages;
    if (this.#conversation !== null) keepQueue(this.#conversation, messages);
  }
}
