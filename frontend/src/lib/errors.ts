import { fill, translation, type Language, type Values } from "./i18n.svelte";

export type ErrorTexts = Record<keyof typeof import("../locales/en/errors").errors, string>;

const loaders: Record<Language, () => Promise<{ errors: ErrorTexts }>> = {
  en: () => import("../locales/en/errors"),
  es: () => import("../locales/es/errors"),
  zh: () => import("../locales/zh/errors"),
};

/** Numbers as the reader writes them. */
function written(params: Values): Values {
  const number = new Intl.NumberFormat(translation.language);
  return Object.fromEntries(Object.entries(params).map(([name, value]) => [name, typeof value === "number" ? number.format(value) : value]));
}

/**
 * What a kind of error means, in the reader's language.
 *
 * `reason` is the server's own sentence, which has to do for a kind that is not known here, and while the texts cannot be loaded.
 */
export async function errorSentence(code: string, params: Values, reason: string): Promise<string> {
  const texts: Partial<Record<string, string>> | null = await loaders[translation.language]()
    .then(({ errors }) => errors)
    .catch(() => null);
  if (!texts || !Object.hasOwn(texts, code)) return reason;
  return fill(texts[code] ?? reason, { ...written(params), reason: reason.replace(/\.$/, "") });
}
