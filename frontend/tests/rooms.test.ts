import { expect, it } from "vitest";
import { ROOMS } from "../src/lib/i18n.svelte";

const SOURCES = import.meta.glob<string>("../src/**/*.{ts,svelte}", { query: "?raw", import: "default", eager: true });
const read = (path: string): string => SOURCES[path] ?? "";

/** Which room has a key, or keys that begin like it. The dashboard's texts stand in several files. */
function roomOf(key: string): string | undefined {
  const file = Object.keys(SOURCES).find((path) => path.startsWith("../src/locales/en/") && read(path).includes(`"${key}`));
  return ROOMS.find((room) => file?.startsWith(`../src/locales/en/${room}`));
}

/** The files that a file imports, at once or later. */
function importsOf(path: string): string[] {
  const addresses = [...read(path).matchAll(/(?:from|import\() ?"(\.[^"]+)"/g)].map(([, address = ""]) => address);
  const paths = addresses.map((address) => new URL(address, `file:///x/${path.slice("../".length)}`).pathname.replace("/x", ".."));
  return paths.flatMap((name) => [name, `${name}.ts`].filter((candidate) => candidate in SOURCES));
}

function reachable(path: string, seen = new Set<string>()): Set<string> {
  if (seen.has(path) || path.includes("/locales/")) return seen;
  seen.add(path);
  for (const next of importsOf(path)) reachable(next, seen);
  return seen;
}

const PAGE = /import\("\.\/([^"]+)"\), texts: \[([^\]]*)\]/g;
const pages = [...read("../src/pages.ts").matchAll(PAGE)].map(([, file = "", rooms = ""]) => ({ file, rooms }));

it("knows all pages", () => expect(pages.length).toBeGreaterThan(8));

it.each(pages)("$file has the texts that it shows", ({ file, rooms }) => {
  const paths = [...reachable(`../src/${file}`)];
  const needed = paths.flatMap((path) => [...read(path).matchAll(/\.need\(\[([^\]]*)\]|\bwithTexts\(("\w+")/g)].map(([, several, one]) => several ?? one));
  const loaded = [rooms, ...needed].join();
  const keys = paths.flatMap((path) => [...read(path).matchAll(/["'`]([a-z]+\.\w[\w.]*)/g)].map(([, key = ""]) => key));
  const missing = keys.filter((key) => {
    const room = roomOf(key);
    return room !== undefined && !loaded.includes(`"${room}"`);
  });
  expect(missing).toEqual([]);
});
