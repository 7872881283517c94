import { basePath } from "./address";
import { named } from "./basePath";

/** Texts by name that survive a reload, bounded in count and length. The oldest ones go first. */
export interface Bounds {
  count: number;
  /** Of all texts together. */
  characters: number;
}

/** What `localStorage` is used for here. */
export type Store = Pick<Storage, "getItem" | "setItem">;

/**
 * Keeps them in one entry of the browser's storage, and in memory where that is full or forbidden.
 * What cannot be read, because somebody else wrote it, counts as nothing.
 */
export class TextStore {
  /** Another instance below another path of this host has texts of its own. */
  readonly #entry: string;
  #texts: Map<string, string>;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #stored = true;

  /** `delayMs`: how long after a change it is stored, for texts that change with every key. */
  constructor(
    readonly key: string,
    readonly bounds: Bounds,
    readonly delayMs = 0,
    readonly store: Store | null = browserStore(),
  ) {
    this.#entry = named(key, basePath);
    this.#texts = new Map(this.#read());
    if (delayMs > 0 && typeof addEventListener === "function") addEventListener("pagehide", () => this.flush());
  }

  /** Whether all that is in memory could be stored. */
  get isStored(): boolean {
    return this.#stored;
  }

  get(name: string): string {
    return this.#texts.get(name) ?? "";
  }

  /** An empty text is forgotten. */
  set(name: string, text: string): void {
    this.#texts.delete(name);
    if (text) this.#texts.set(name, text);
    this.#bound();
    if (this.delayMs > 0) this.#timer ??= setTimeout(() => this.flush(), this.delayMs);
    else this.flush();
  }

  /** The newest text stays, however long it is. */
  #bound(): void {
    let characters = 0;
    for (const text of this.#texts.values()) characters += text.length;
    for (const [oldest, text] of this.#texts) {
      if (this.#texts.size <= 1) return;
      if (this.#texts.size <= this.bounds.count && characters <= this.bounds.characters) return;
      this.#texts.delete(oldest);
      characters -= text.length;
    }
  }

  /** What other tabs have written since. */
  reload(): void {
    if (!this.#stored) return; // nothing but the memory has it
    this.#texts = new Map(this.#read());
  }

  #read(): [string, string][] {
    try {
      const entries: unknown = JSON.parse(this.store?.getItem(this.#entry) ?? "[]");
      if (!Array.isArray(entries)) return [];
      return entries.filter(isEntry).slice(-this.bounds.count);
    } catch {
      return [];
    }
  }

  /** Stores now what is in memory. */
  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#stored = false;
    try {
      this.store?.setItem(this.#entry, JSON.stringify([...this.#texts]));
      this.#stored = this.store !== null;
    } catch {
      // Full or forbidden: what is in memory still serves this page.
    }
  }
}

function isEntry(entry: unknown): entry is [string, string] {
  return Array.isArray(entry) && entry.length === 2 && entry.every((part) => typeof part === "string");
}

function browserStore(): Store | null {
  try {
    return typeof localStorage === "undefined" ? null : localStorage;
  } catch {
    return null;
  }
}
