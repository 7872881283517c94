import type { en } from "../locales/en";
import { common } from "../locales/en/common";
import type { dashboard as englishDashboard } from "../locales/en/dashboard";
import { pages } from "../locales/en/pages";

/** Texts by key. Other languages are complete by their type: a missing text does not compile. */
export type Dictionary = typeof en;
/** The texts that come with the dashboard. */
export type DashboardDictionary = Record<keyof typeof englishDashboard, string>;
type AnyKey = keyof Dictionary | keyof DashboardDictionary;
export type TextKey = Exclude<AnyKey, `${string}#other`>;
/** The key of a text that depends on a number: the dictionary has `key` for one and `key#other` for more. */
export type PluralKey = Extract<TextKey, { [K in AnyKey]: K extends `${infer Base}#other` ? Base : never }[AnyKey]>;
export type Values = Record<string, string | number>;

export const LANGUAGES = { en: "English", es: "Español", zh: "中文" } as const;
export type Language = keyof typeof LANGUAGES;

const STORED = "canopy.language";

/** The files of texts beside those of the shell. A page names the ones that it shows (pages.ts). */
export const ROOMS = ["answering", "apidocs", "attachments", "chat", "connect", "dashboard", "settings", "sidebar", "start"] as const;
export type Room = (typeof ROOMS)[number];

type Texts = Partial<Dictionary & DashboardDictionary>;

/** What every page shows. Its English is part of the first load: it also says that something did not load. */
const SHELL = ["common", "pages"] as const;
const shell: Texts = { ...common, ...pages };

/** Each file exports one table of texts; the dashboard's is put together from one a section. */
const files = import.meta.glob<Record<string, Texts>>([
  "../locales/*/*.ts",
  "!../locales/*/{index,dashboard-*}.ts",
  "!../locales/en/{common,pages}.ts",
]);

async function load(language: Language, rooms: Iterable<Room>): Promise<Texts> {
  const names = language === "en" ? [...rooms] : [...SHELL, ...rooms];
  const modules = await Promise.all(names.map((name) => files[`../locales/${language}/${name}.ts`]?.()));
  const tables = modules.flatMap((module) => Object.values(module ?? {}));
  return Object.assign({}, shell, ...tables) as Texts;
}

class Translation {
  language = $state<Language>("en");
  /** Read together with `language`, which tells of a change; new rooms change nothing that is shown. */
  #texts: Texts = shell;
  #rooms = new Set<Room>();
  #chosen: Language = "en";

  /** Use a language from now on. Rejects, and changes nothing, when its texts cannot be loaded. */
  async use(language: Language): Promise<void> {
    this.#chosen = language;
    try {
      await this.#settle();
    } catch (error) {
      this.#chosen = this.language;
      throw error;
    }
  }

  /** Have the texts of these rooms; what shows them waits for it. */
  async need(rooms: readonly Room[]): Promise<void> {
    const added = rooms.filter((room) => !this.#rooms.has(room));
    for (const room of added) this.#rooms.add(room);
    try {
      await this.#settle();
    } catch (error) {
      for (const room of added) this.#rooms.delete(room);
      throw error;
    }
  }

  /** Load what is chosen and needed now. What changed while it loaded is loaded next. */
  async #settle(): Promise<void> {
    const language = this.#chosen;
    const count = this.#rooms.size;
    const texts = await load(language, this.#rooms);
    if (language !== this.#chosen || count !== this.#rooms.size) return this.#settle();
    this.#texts = texts;
    if (language === this.language) return;
    this.language = language;
    document.documentElement.lang = language;
  }

  text(key: AnyKey): string {
    void this.language;
    return this.#texts[key] ?? key;
  }
}

export const translation = new Translation();

function isLanguage(name: string | null | undefined): name is Language {
  return typeof name === "string" && Object.hasOwn(LANGUAGES, name);
}

/** The language that was chosen on this device, else the browser's first one that we have, else English. */
export function preferredLanguage(chosen: string | null, wishes: readonly string[]): Language {
  if (isLanguage(chosen)) return chosen;
  const first = wishes.map((wish) => wish.slice(0, 2).toLowerCase()).find(isLanguage);
  return first ?? "en";
}

/** Load the reader's language before the first page is drawn. English stays if it cannot be loaded. */
export async function startTranslation(): Promise<void> {
  const language = preferredLanguage(localStorage.getItem(STORED), navigator.languages);
  await translation.use(language).catch(() => translation.use("en"));
}

/** Choose a language and remember it on this device. */
export async function chooseLanguage(language: Language): Promise<void> {
  await translation.use(language);
  localStorage.setItem(STORED, language);
}

/** Put values into `{name}` places. A place without a value stays as it is, so that a mistake is seen. */
export function fill(text: string, values: Values): string {
  return text.replace(/\{(\w+)\}/g, (place, name: string) => String(values[name] ?? place));
}

/** A part of a page that is loaded when it is first used, with the texts of its room. */
export async function withTexts<T>(room: Room, part: Promise<T>): Promise<T> {
  const [loaded] = await Promise.all([part, translation.need([room])]);
  return loaded;
}

/** A text in the reader's language. */
export function t(key: TextKey, values: Values = {}): string {
  return fill(translation.text(key), values);
}

/** A text that depends on `count`, which it may show as `{count}`. */
export function tn(key: PluralKey, count: number, values: Values = {}): string {
  const one = new Intl.PluralRules(translation.language).select(count) === "one";
  const chosen = one ? key : (`${key}#other` as AnyKey);
  return fill(translation.text(chosen), { count: count.toLocaleString(translation.language), ...values });
}
