/** A growing text, spoken sentence by sentence: nobody can listen to single words, or to all of it again. */
const END = /[.!?…。！？](?:["'”’)\]]*)(?=\s)|[。！？]|\n{2,}/g;
/** What is written for the eyes only. */
const MARKS = /[*_`#>|~]+/g;

export class SentenceReader {
  #spoken = 0;

  /** The sentences that are complete since the last call, as one text; all that is left once `ended`. */
  read(text: string, ended: boolean): string {
    let end = this.#spoken;
    if (ended) end = text.length;
    else for (const match of text.slice(this.#spoken).matchAll(END)) end = this.#spoken + match.index + match[0].length;
    const sentences = text.slice(this.#spoken, end);
    this.#spoken = Math.max(end, this.#spoken);
    return sentences.replace(MARKS, "").replace(/\s+/g, " ").trim();
  }

  /** Leaves out what is there already. */
  skip(text: string): void {
    this.#spoken = text.length;
  }
}
