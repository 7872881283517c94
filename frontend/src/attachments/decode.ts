/** The text in a file's bytes. Pure. */

/** A file's text, or why it is none. */
export type Decoded = { text: string } | { refusal: "empty" | "binary" | "encoding" };

const BYTE_ORDER_MARKS: [string, number[]][] = [
  ["utf-8", [0xef, 0xbb, 0xbf]],
  ["utf-16le", [0xff, 0xfe]],
  ["utf-16be", [0xfe, 0xff]],
];
/** Of the characters below the space, texts have tab, line feed, form feed, carriage return and escape. */
const CONTROL = /[\u0000-\u0008\u000b\u000e-\u001a\u001c-\u001f]/;

/** As UTF-8, or as the byte order mark says. */
export function decode(bytes: Uint8Array): Decoded {
  const mark = BYTE_ORDER_MARKS.find(([, start]) => start.every((byte, place) => bytes[place] === byte));
  if (!mark && bytes.includes(0)) return { refusal: "binary" };
  try {
    const text = new TextDecoder(mark?.[0] ?? "utf-8", { fatal: true }).decode(bytes);
    if (CONTROL.test(text)) return { refusal: "binary" };
    return text.trim() === "" ? { refusal: "empty" } : { text };
  } catch {
    return { refusal: mark ? "binary" : "encoding" };
  }
}
