import { MAX_CHARACTERS, tooLong } from "../chat/composer.svelte";
import { t, translation } from "../lib/i18n.svelte";
import type { Attachment } from "../lib/types";
import { decode } from "./decode";

/** The server's limit. */
export const MAX_ATTACHMENTS = 8;
/** No text of so many bytes can be short enough. */
const MAX_BYTES = 4 * MAX_CHARACTERS + 3;
const NAME_LENGTH = 200;

export interface Read {
  texts: Attachment[];
  /** Of each file that is not attached: why, in the reader's words. */
  problems: string[];
}

/** The files that are texts and fit into the message, whose own text and attachments are given. */
export async function readFiles(files: File[], message: string, attached: Attachment[]): Promise<Read> {
  const texts: Attachment[] = [];
  const problems: string[] = [];
  for (const file of files) {
    if (attached.length + texts.length >= MAX_ATTACHMENTS) {
      problems.push(t("attach.tooMany", { most: MAX_ATTACHMENTS }));
      break;
    }
    const read = await readFile(file, message, [...attached, ...texts]);
    if (typeof read === "string") problems.push(read);
    else texts.push(read);
  }
  return { texts, problems };
}

/** The attachment, or why there is none. */
async function readFile(file: File, message: string, attached: Attachment[]): Promise<Attachment | string> {
  const name = file.name.slice(-NAME_LENGTH);
  if (file.type.startsWith("image/") && file.type !== "image/svg+xml") return t("attach.image", { name });
  if (file.size > MAX_BYTES) return t("attach.tooLarge", { name, most: number(MAX_CHARACTERS) });
  let bytes: ArrayBuffer;
  try {
    bytes = await file.arrayBuffer();
  } catch {
    return t("attach.unreadable", { name }); // a folder, or a file that is gone
  }
  const decoded = decode(new Uint8Array(bytes));
  if ("refusal" in decoded) return t(`attach.${decoded.refusal}`, { name });
  const count = tooLong("", [{ name, text: decoded.text }]);
  if (count !== null) return t("attach.tooLong", { name, count: number(count), most: number(MAX_CHARACTERS) });
  const total = tooLong(message, [...attached, { name, text: decoded.text }]);
  if (total !== null) return t("attach.tooLongTogether", { name, count: number(total), most: number(MAX_CHARACTERS) });
  return { name, text: decoded.text };
}

/** A pasted text as an attachment, with a name that none of the others has. */
export function pastedText(text: string, attached: Attachment[]): Attachment {
  const names = new Set(attached.map(({ name }) => name));
  let name = `${t("attach.pasted")}.txt`;
  for (let number = 2; names.has(name); number += 1) name = `${t("attach.pasted")} ${number}.txt`;
  return { name, text };
}

function number(value: number): string {
  return value.toLocaleString(translation.language);
}
