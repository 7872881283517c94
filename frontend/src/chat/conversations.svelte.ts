import { SvelteSet } from "svelte/reactivity";
import { ApiError, api, errorText, type ConversationChange, type ListOptions } from "../lib/api";
import { events, type ListChange } from "../lib/events";
import { t, tn } from "../lib/i18n.svelte";
import { Latest } from "../lib/latest";
import { router } from "../lib/router.svelte";
import { toasts } from "../lib/toasts.svelte";
import type { BulkAction, ConversationPage, ConversationSummary, Folder } from "../lib/types";
import { inOrder, placed, sectionOf, takenBack, without } from "./listing";

type Loading = "closed" | "loading" | "ready" | "failed";
type Change = () => void;

/** One run of conversations: the main list, a folder's, or the archived ones; loaded page by page. */
export class Section {
  items = $state.raw<ConversationSummary[]>([]);
  state = $state<Loading>("closed");
  #next = $state<string | null>(null);
  #busy = false;
  readonly #loads = new Latest();
  /** For each request on its way, what changed since it began: its answer may not have that. */
  readonly #changes = new Set<Change[]>();

  constructor(readonly key: string) {}

  /** There is more than is loaded. */
  more = $derived(this.#next !== null);

  /** Load the first page; it goes on to `through`, and is as long as what is shown. */
  async load(through?: string): Promise<void> {
    if (this.state !== "ready") this.state = "loading";
    const limit = Math.min(Math.max(this.items.length, 50), 1000);
    const isLatest = this.#loads.begin();
    try {
      const [page, changes] = await this.#read({ limit, through });
      if (!isLatest()) return;
      this.items = page.conversations;
      this.#next = page.next;
      this.state = "ready";
      for (const change of changes) change();
      conversations.setFolders(page.folders, page.archived);
    } catch (error) {
      if (!isLatest()) return;
      // Offline, the service worker has the first page at most.
      if (through && error instanceof ApiError && error.status === 0) return this.load();
      if (this.state === "loading") this.state = "failed";
      else tell(error);
    }
  }

  async loadMore(): Promise<void> {
    if (this.#busy || this.#next === null) return;
    this.#busy = true;
    try {
      const [page, changes] = await this.#read({ cursor: this.#next });
      const known = new Set(this.items.map(({ id }) => id));
      this.items = [...this.items, ...page.conversations.filter(({ id }) => !known.has(id))];
      this.#next = page.next;
      for (const change of changes) change();
    } catch (error) {
      tell(error);
    } finally {
      this.#busy = false;
    }
  }

  /** Put a conversation at its place; one beyond the loaded pages comes with them. */
  put(entry: ConversationSummary): void {
    this.#note(() => this.put(entry));
    if (this.state !== "ready") return;
    const last = this.items.at(-1);
    if (this.more && last && inOrder(last, entry) < 0) this.items = without(this.items, entry.id);
    else this.items = placed(this.items, entry);
  }

  remove(id: string): void {
    this.#note(() => this.remove(id));
    if (this.items.some((item) => item.id === id)) this.items = without(this.items, id);
  }

  #note(change: Change): void {
    for (const changes of this.#changes) changes.push(change);
  }

  /** A page, and what is to be done to it because it happened meanwhile. */
  async #read(options: ListOptions): Promise<[ConversationPage, Change[]]> {
    const changes: Change[] = [];
    this.#changes.add(changes);
    try {
      return [await api.conversations({ ...this.#selection(), ...options }), changes];
    } finally {
      this.#changes.delete(changes);
    }
  }

  #selection(): { folder?: string; archived?: boolean } {
    if (this.key === "archived") return { archived: true };
    return this.key.startsWith("folder:") ? { folder: this.key.slice("folder:".length) } : {};
  }
}

/** The list of conversations, kept in step with all other tabs and devices. */
export class ConversationList {
  main = new Section("main");
  archive = new Section("archived");
  folders = $state.raw<Folder[]>([]);
  archived = $state(0);
  /** Conversations that are selected, to do something with all of them. */
  selected = new SvelteSet<string>();
  selecting = $state(false);
  #folderSections = new Map<string, Section>();

  /** Load the list, as far as the open conversation, and follow its changes. Returns how to end that. */
  start(open: string | null): () => void {
    void this.main.load(open ?? undefined);
    return events.onList((change) => this.#apply(change));
  }

  folder(name: string): Section {
    const section = this.#folderSections.get(name) ?? new Section(`folder:${name}`);
    this.#folderSections.set(name, section);
    return section;
  }

  find(id: string | null): ConversationSummary | undefined {
    return this.#sections()
      .flatMap((section) => section.items)
      .find((item) => item.id === id);
  }

  setFolders(folders: Folder[], archived: number): void {
    this.folders = folders;
    this.archived = archived;
  }

  /** Rename, pin, archive or move; shown at once, and taken back if the server refuses. */
  async change(id: string, change: ConversationChange): Promise<void> {
    const before = this.find(id);
    if (!before) return;
    this.#place({ ...before, ...change });
    try {
      await api.updateConversation(id, change);
      if (change.folder !== undefined || change.archived !== undefined) void this.#reloadFolders();
    } catch (error) {
      const now = this.find(id) ?? (isMissing(error) ? null : before);
      if (now) this.#place(takenBack(now, before, change));
      tell(error);
    }
  }

  /** Delete at once, and offer the way back. True when they are gone. */
  async remove(ids: string[]): Promise<boolean> {
    const entries = ids.map((id) => this.find(id)).filter((entry) => entry !== undefined);
    for (const id of ids) this.#drop(id);
    const open = router.route.page === "chat" ? router.route.conversation : null;
    const path = open && ids.includes(open) ? `/c/${open}` : null;
    if (path) router.go("/");
    try {
      await api.bulk("delete", ids);
    } catch (error) {
      for (const entry of entries) this.#place(entry);
      tell(error);
      return false;
    }
    toasts.show(tn("sidebar.deleted", ids.length), "info", {
      label: t("sidebar.undo"),
      run: () => void this.#restore(ids, entries, path),
    });
    return true;
  }

  async #restore(ids: string[], entries: ConversationSummary[], path: string | null): Promise<void> {
    try {
      await api.bulk("restore", ids);
      for (const entry of entries) this.#place(entry);
      if (path && router.path === "/") router.go(path);
    } catch (error) {
      tell(error);
    }
  }

  /** Archive, or move, all that is selected. */
  async changeSelected(action: Exclude<BulkAction, "delete" | "restore">, folder = ""): Promise<void> {
    const ids = [...this.selected];
    this.endSelection();
    try {
      await api.bulk(action, ids, folder);
      this.#reload();
    } catch (error) {
      tell(error);
    }
  }

  endSelection(): void {
    this.selecting = false;
    this.selected.clear();
  }

  #sections(): Section[] {
    return [this.main, ...this.#folderSections.values(), this.archive];
  }

  #apply(change: ListChange): void {
    if (change.change === "reset") this.#reload();
    else if (change.change === "deleted") this.#drop(change.conversation.id);
    else {
      const before = this.find(change.conversation.id);
      this.#place(change.conversation);
      if (sectionOf(change.conversation) !== (before && sectionOf(before))) void this.#reloadFolders();
    }
  }

  #reload(): void {
    for (const section of this.#sections()) {
      if (section.state === "ready" || section.state === "failed") void section.load();
    }
  }

  async #reloadFolders(): Promise<void> {
    const page = await api.conversations({ limit: 1 }).catch(tell);
    if (page) this.setFolders(page.folders, page.archived);
  }

  #place(entry: ConversationSummary): void {
    const key = sectionOf(entry);
    for (const section of this.#sections()) {
      if (section.key === key) section.put(entry);
      else section.remove(entry.id);
    }
  }

  #drop(id: string): void {
    const entry = this.find(id);
    this.selected.delete(id);
    for (const section of this.#sections()) section.remove(id);
    if (entry && sectionOf(entry) !== "main") void this.#reloadFolders();
  }
}

/** Errors that the login page explains by itself need no second line. */
function tell(error: unknown): void {
  if (error instanceof ApiError && error.status === 401) return;
  toasts.show(errorText(error));
}

function isMissing(error: unknown): boolean {
  return error instanceof ApiError && error.status === 404;
}

export const conversations = new ConversationList();
