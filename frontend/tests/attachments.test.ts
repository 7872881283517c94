import { beforeAll, describe, expect, it } from "vitest";
import { decode } from "../src/attachments/decode";
import { MAX_ATTACHMENTS, pastedText, readFiles } from "../src/attachments/reading";
import { sizeOf } from "../src/attachments/size";
import { translation } from "../src/lib/i18n.svelte";
import { conversationsOf } from "../src/transfer/formats";

const utf16 = (text: string, bigEndian: boolean): Uint8Array => {
  const view = new DataView(new ArrayBuffer(2 + 2 * text.length));
  view.setUint16(0, 0xfeff, !bigEndian);
  for (let at = 0; at < text.length; at += 1) view.setUint16(2 + 2 * at, text.charCodeAt(at), !bigEndian);
  return new Uint8Array(view.buffer);
};
const utf8 = (text: string): Uint8Array<ArrayBuffer> => new TextEncoder().encode(text);
const file = (name: string, content: BlobPart, type = ""): File => new File([content], name, { type });

beforeAll(() => translation.need(["attachments"]));

describe("decode", () => {
  it("reads UTF-8 and UTF-16, with a byte order mark or without", () => {
    for (const bytes of [utf8("größe 🌳"), utf8("\ufeffgröße 🌳"), utf16("größe 🌳", true), utf16("größe 🌳", false)]) {
      expect(decode(bytes)).toEqual({ text: "größe 🌳" });
    }
  });

  it("tells what is no text", () => {
    expect(decode(new Uint8Array([0x89, 0x50, 0, 1]))).toEqual({ refusal: "binary" });
    expect(decode(utf8("\u0001\u0002"))).toEqual({ refusal: "binary" });
    expect(decode(new Uint8Array([0x67, 0x72, 0xf6, 0xdf, 0x65]))).toEqual({ refusal: "encoding" });
    expect(decode(new Uint8Array([0xff, 0xfe, 0x00, 0xd8]))).toEqual({ refusal: "binary" });
    expect(decode(utf8(" \n"))).toEqual({ refusal: "empty" });
  });
});

describe("readFiles", () => {
  it("takes texts and says of the others why not", async () => {
    const { texts, problems } = await readFiles(
      [
        file("a.md", "# A"),
        file("photo.png", "x", "image/png"),
        file("tool", new Uint8Array([0, 1])),
        file("long.txt", "x".repeat(120_000)),
        file("huge.txt", "x".repeat(400_004)),
        file("more.txt", "x".repeat(99_999)),
      ],
      "hello",
      [],
    );
    expect(texts).toEqual([{ name: "a.md", text: "# A" }]);
    expect(problems).toEqual([
      "photo.png is an image; only text can be attached.",
      "tool is not a text; only text can be attached.",
      "long.txt is too long: 120,000 characters, at most 100,000.",
      "huge.txt is too long: a message may have 100,000 characters.",
      "With more.txt the message is too long: 100,007 characters, at most 100,000.",
    ]);
  });

  it("takes a few", async () => {
    const files = Array.from({ length: MAX_ATTACHMENTS + 3 }, (_, place) => file(`${place}.txt`, "x"));
    const { texts, problems } = await readFiles(files, "", []);
    expect([texts.length, problems]).toEqual([8, ["At most 8 files can be attached to a message."]]);
  });
});

describe("attachments", () => {
  it("have names of their own when they are pasted", () => {
    const first = pastedText("a", []);
    expect([first.name, pastedText("b", [first]).name]).toEqual(["Pasted text.txt", "Pasted text 2.txt"]);
  });

  it("say how large they are", () => {
    expect([sizeOf("ä", "en"), sizeOf("x".repeat(1234), "en"), sizeOf("x".repeat(12_345), "de")]).toEqual(["2 B", "1.2 kB", "12 kB"]);
  });

  it("come in with our own format, also without a message", () => {
    const attachments = [{ name: "a.txt", text: "x" }, { name: "", text: "y" }, 7];
    const messages = [{ id: 1, parent: null, role: "user", content: "", attachments }];
    const [imported] = conversationsOf({ format: "canopy", conversations: [{ title: "T", messages }] });
    expect(imported?.messages[0]).toMatchObject({ content: "", attachments: [{ name: "a.txt", text: "x" }] });
  });
});
