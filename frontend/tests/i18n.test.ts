import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { failure } from "../src/lib/api";
import { errorSentence } from "../src/lib/errors";
import { LANGUAGES, type Language, fill, preferredLanguage, t, tn, translation } from "../src/lib/i18n.svelte";
import { en } from "../src/locales/en";
import { dashboard as enDashboard } from "../src/locales/en/dashboard";
import { errors as englishErrors } from "../src/locales/en/errors";
import { es } from "../src/locales/es";
import { dashboard as esDashboard } from "../src/locales/es/dashboard";
import { errors as spanishErrors } from "../src/locales/es/errors";
import { zh } from "../src/locales/zh";
import { dashboard as zhDashboard } from "../src/locales/zh/dashboard";
import { errors as chineseErrors } from "../src/locales/zh/errors";

const english = { ...en, ...enDashboard };

beforeEach(() => vi.stubGlobal("document", { documentElement: {} }));
afterEach(() => translation.use("en").finally(() => vi.unstubAllGlobals()));

describe("the reader's language", () => {
  it("is the chosen one, else the browser's first that we have", () => {
    expect(preferredLanguage("zh", ["es-MX"])).toBe("zh");
    expect(preferredLanguage(null, ["fr", "es-MX", "en"])).toBe("es");
    expect(preferredLanguage("toString", ["fr"])).toBe("en");
  });

  it("changes texts and plurals", async () => {
    expect([t("common.retry"), tn("common.slots", 1), tn("common.slots", 3)]).toEqual(["Try again", "1 slot", "3 slots"]);
    await translation.use("es");
    expect([t("common.retry"), tn("common.slots", 1), tn("common.slots", 3)]).toEqual(["Reintentar", "1 plaza", "3 plazas"]);
  });
});

it("leaves a place without a value visible", () => {
  expect(fill("{a} of {b}", { a: 1 })).toBe("1 of {b}");
});

describe.each(Object.keys(LANGUAGES) as Language[])("the texts in %s", (language) => {
  const dictionary: Record<string, string> = { en: english, es: { ...es, ...esDashboard }, zh: { ...zh, ...zhDashboard } }[language];

  it("have the same places as the English ones", () => {
    const places = (text: string | undefined): string[] => [...(text ?? "").matchAll(/\{\w+\}/g)].map(([place]) => place).sort();
    const different = Object.entries(english).filter(([key, text]) => places(text).join() !== places(dictionary[key]).join());
    expect(different).toEqual([]);
  });

  it("are not empty, and a plural has a singular", () => {
    expect(Object.entries(dictionary).filter(([, text]) => !text.trim())).toEqual([]);
    const bases = Object.keys(dictionary).filter((key) => key.endsWith("#other"));
    expect(bases.filter((key) => !(key.replace("#other", "") in dictionary))).toEqual([]);
  });
});

describe("errors", () => {
  it("are said in the reader's language, with the numbers as written there", async () => {
    const refused = (): Response => Response.json({ error: { message: "content: too long", code: "too_many_characters", params: { bound: 100_000 } } }, { status: 400 });
    expect((await failure(refused())).message).toBe("That is too long: at most 100,000 characters.");
    await translation.use("es");
    expect((await failure(refused())).message).toBe("Es demasiado largo: como máximo 100.000 caracteres.");
  });

  it("of an unknown kind are said in the server's words", async () => {
    expect(await errorSentence("constructor", {}, "Something else.")).toBe("Something else.");
    expect((await failure(new Response("<html>", { status: 502 }))).message).toContain("502");
  });

  it.each([spanishErrors, chineseErrors])("have no place that the English text lacks", (errors) => {
    const places = (text: string): string[] => text.match(/\{\w+\}/g) ?? [];
    const wrong = Object.entries(englishErrors).filter(([code, english]) => {
      const known = places(english);
      return places(errors[code as keyof typeof errors]).some((place) => !known.includes(place));
    });
    expect(wrong).toEqual([]);
  });
});
