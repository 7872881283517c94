import { describe, expect, it } from "vitest";
import { GrowingDocument } from "../src/lib/markdown/document";
import { languageOf } from "../src/lib/markdown/highlight";
import { htmlOf, parse } from "../src/lib/markdown/parser";
import { splitThinking } from "../src/lib/markdown/thinking";

const html = (text: string): string =>
  parse(text, { docId: "m" }, true)
    .map(htmlOf)
    .join("");

/** The TeX of the formulas in a text; those on a line of their own in double angle brackets. */
function formulas(text: string): string[] {
  const tags = [...html(text).matchAll(/<(?:span|div) class="math" data-tex="([^"]*)"( data-display)?/g)];
  return tags.map((tag) => (tag[2] ? `<<${tag[1]}>>` : String(tag[1])));
}

describe("markdown", () => {
  it("gives one block a top-level block", () => {
    expect(parse("# A\n\ntext\n\n- one\n- two\n\n```python\nx = 1\n```", { docId: "m" }, false)).toHaveLength(4);
  });

  it("shows raw HTML as text, and neither images nor script links", () => {
    expect(html('<img src=x onerror="alert(1)"> <script>alert(1)</script>')).not.toMatch(/<(img|script)/);
    expect(html('![a <b>](https://example.org/x.png?a="b)')).toMatch(
      /^<p><a href="https:[^"<]*" target="_blank" rel="[a-z ]*">a &lt;b&gt;<\/a><\/p>/,
    );
  });

  it.each([
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "java&#115;cript:alert(1)",
    "&#x6A;avascript:alert(1)",
    "vbscript:x",
    "data:text/html;base64,PHNjcmlwdD4=",
    "data:image/svg+xml;base64,PHN2Zz4=",
    "data:image/png;base64,AAAA",
    "file:///etc/passwd",
    "/api/logout",
    "//example.org",
    "blob:https://example.org/1",
  ])("makes no link to %s", (address) => {
    for (const text of [`[x](${address})`, `![x](${address})`, `[x][a]\n\n[a]: ${address}`, `<${address}>`]) {
      // What is a web address inside of it may become a link.
      expect(html(text).replace(/href="https?:/g, "")).not.toMatch(/href|src=/);
    }
  });

  it("opens links elsewhere, without telling from where", () => {
    expect(html("https://example.org")).toContain('target="_blank" rel="noopener noreferrer nofollow"');
  });

  it("escapes code and its language's name", () => {
    expect(html("```<b>\n<i>\n```")).not.toMatch(/<[bi]>/);
    expect(html('```x"onclick="alert(1)\n<i>\n```')).not.toMatch(/"onclick/);
    expect(html("    <i>")).not.toContain("<i>");
  });

  it("keeps the alignment of columns", () => {
    const table = html("| a | b | c |\n|:--|--:|:-:|\n| 1 | 2 | 3 |");
    expect(table).toContain('<th class="left">a</th>\n<th class="right">b</th>\n<th class="center">c</th>');
    expect(table).toContain('<td class="right">2</td>');
  });

  it("has task lists", () => {
    const list = html("- [ ] one\n- [x] **two**\n- [y] three");
    expect(list.match(/type="checkbox"/g)).toHaveLength(2);
    expect(list.match(/checked/g)).toHaveLength(1);
    expect(list).toContain("<strong>two</strong>");
  });

  it("has the mark of a footnote before its note is written, and no mark without a note", () => {
    const growing = new GrowingDocument("m");
    const grown = (text: string, more: boolean): string => growing.update(text, more).map(htmlOf).join("");
    expect(grown("A note[^1] and [^a](https://example.org/)", true)).toContain('note<sup class="footnote-ref">[1]</sup> and <a');
    expect(grown("A note[^1] and [^a](https://example.org/)\n\nThe end", false)).toContain("A note[^1] and");
  });

  it("has footnotes whose names are the message's own", () => {
    const notes = html("A[^1] and B[^note].\n\n[^1]: First.\n[^note]: Second `code`.");
    expect(notes).toContain('href="#fn-m-1" id="fnref-m-1"');
    expect(notes).toContain('<li id="fn-m-2" class="footnote-item">');
    expect(parse("A[^1] and B[^2].\n\n[^1]: First.\n[^2]: Second.", { docId: "m" }, true)).toHaveLength(2);
  });
});

describe("formulas", () => {
  it.each([
    ["\\( \\int_0^1 x^2\\,dx \\)", ["\\int_0^1 x^2\\,dx"]],
    ["so \\[ a_1 * b_1 * c \\] holds", ["<<a_1 * b_1 * c>>"]],
    ["\\[\na < b\n\\]", ["<<a &lt; b>>"]],
    ["$$\nx\n- y\n= z\n$$\n\nafter", ["<<x\n- y\n= z>>"]],
    ["$$ x $$", ["<<x>>"]],
    ["- item\n\n  $$\n  x\n  $$\n- $y$", ["<<x>>", "y"]],
    ["text $$x$$, where", ["<<x>>"]],
    ["$$\nx\n$$, where $y$", ["<<x>>", "y"]],
    ["Let $x_1$ and $y_2$ be *real*.", ["x_1", "y_2"]],
    ["| a | b |\n|--|--|\n| $x$ | \\(y\\) |", ["x", "y"]],
    ["$\\$5$", ["\\$5"]],
    ["$5 and $6", []],
    ["It costs $5, or $6.", []],
    ["$5 apples and 3$ more", []],
    ["US$5 and CA$6", []],
    ["`$x$` and `\\(y\\)`", []],
    ["```\n$$\nx\n$$\n```", []],
    ["    \\[ x \\]", []],
    ["\\$x\\$", []],
    ["$$", []],
    ["$ x $", []],
  ])("of %j", (text, expected) => {
    expect(formulas(text)).toEqual(expected);
  });

  it("that have no end stay as they are written", () => {
    expect(html("so \\( \\int x")).toBe("<p>so \\( \\int x</p>\n");
    expect(html("\\[\nx * y * z\n\nafter *this*")).toBe('<p class="source">\\[\nx * y * z</p><p>after <em>this</em></p>\n');
  });

  it("show their source until they are drawn", () => {
    expect(html("\\( a<b \\)")).toContain(">\\( a&lt;b \\)</span>");
  });
});

describe("thinking", () => {
  it.each([
    ["plain", { thought: null, finished: true, answer: "plain" }],
    ["<think>", { thought: "", finished: false, answer: "" }],
    ["\n<think>\nwhy", { thought: "why", finished: false, answer: "" }],
    ["<think>why</think>\n\nBecause.", { thought: "why", finished: true, answer: "Because." }],
    ["<thinking>a</thinking>b", { thought: "a", finished: true, answer: "b" }],
    ["why\n</think>\nBecause.", { thought: "why", finished: true, answer: "Because." }],
    ["<|channel>thought\nHm.<channel|>Yes.", { thought: "Hm.", finished: true, answer: "Yes." }],
    ["<|channel|>analysis<|message|>Hm", { thought: "Hm", finished: false, answer: "" }],
    [
      "<|channel|>analysis<|message|>Hm. <|end|><|start|>assistant<|channel|>final<|message|>Yes.",
      { thought: "Hm.", finished: true, answer: "Yes." },
    ],
    ["The tag `</think>` ends it.", { thought: null, finished: true, answer: "The tag `</think>` ends it." }],
  ])("of %j", (text, expected) => {
    expect(splitThinking(text)).toEqual(expected);
  });
});

/** Pieces that change what stands before them, if anything does. */
const PIECES = [
  "# Head\n", "text ", "more\n", "\n", "\n\n", "- item\n", "1. one\n", "2", ". two\n", "  inner\n", "    deep\n", "> quote\n",
  "```", "py\n", "```\n", "~~~\n", "$$\n", "$$", "\\[", "\\]\n", "| a | b |\n", "|--|--|\n", "| 1 | 2 |\n", "===\n", "---\n", "*",
  "**", "_x_", "`", "[a]", "[a]: https://example.org\n", "[^1]", "[^1]: note\n", "$x$ ", "\\( y \\) ", "* star\n", "+ plus\n", "\r\n", "<b>",
];

/** What lists and tables are made of; the first four go on with one. */
const LISTS = [
  ["- item\n", "- **bold** `x`\n", "- ", "more\n", "\n", "   - at the edge\n", "  inner\n", "* other\n", "  - nested\n", "---\n", "text\n", "2", "```\n", "  ```\n"],
  ["1. one\n", "7. seven\n", "12. twelve\n", "8", ". eight\n", "\n", "   inner\n", "   1. nested\n", "1) other\n", "    code\n", "> quote\n", "  3. three\n"],
  ["1. loose\n\n", "2. loose\n\n", "3. ", "x\n\n", "tight\n", "   | a | b |\n", "   |--|--|\n", "   $$\n", "- bullet\n", "[x](https://example.org)\n"],
  ["| a | b |\n|--|:-:|\n", "| 1 | **2** |\n", "| `x` | y ", "|\n", "| 3 |\n", "| 4 | 5 | 6 |\n", "\n", "text\n", "- item\n", "    | code |\n", "> quote\n"],
];

/** The same numbers in every run (a linear congruence). */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 1_664_525 + 1_013_904_223) % 4_294_967_296;
    return state / 4_294_967_296;
  };
}

describe("a growing text", () => {
  it("ends as the same blocks as a whole one, and never changes a finished block", () => {
    for (let seed = 1; seed <= 400; seed += 1) {
      const next = random(seed);
      const growing = new GrowingDocument("m");
      let text = "";
      let finished: string[] = [];
      for (let step = 0; step < 40; step += 1) {
        text += PIECES[Math.floor(next() * PIECES.length)] ?? "";
        const now = growing.update(text, true).filter((block) => block.final);
        expect(now.slice(0, finished.length).map(htmlOf)).toEqual(finished);
        finished = now.map(htmlOf);
      }
      const whole = new GrowingDocument("m").update(text, false).map(htmlOf);
      expect(growing.update(text, false).map(htmlOf), JSON.stringify(text)).toEqual(whole);
    }
  });

  it("has the same lists and tables at every step as a fresh one", () => {
    for (let seed = 1; seed <= 40; seed += 1) {
      const next = random(seed);
      const growing = new GrowingDocument("m");
      const pieces = LISTS[seed % LISTS.length] ?? [];
      let text = pieces[0] ?? "";
      for (let step = 0; step < 50; step += 1) {
        // Mostly what goes on with the list, so that it becomes long.
        const usual = next() < 0.9 ? Math.min(4, pieces.length) : pieces.length;
        text += pieces[Math.floor(next() * usual)] ?? "";
        const fresh = new GrowingDocument("m").update(text, true);
        expect(growing.update(text, true).map(htmlOf), JSON.stringify(text)).toEqual(fresh.map(htmlOf));
      }
    }
  });

  it("parses only its end again", () => {
    const growing = new GrowingDocument("m");
    const first = growing.update("one\n\ntwo\n\nthree\n", true)[0];
    expect(growing.update("one\n\ntwo\n\nthree\n\nfour", true)[0]).toBe(first);
  });

  it("may be replaced by another", () => {
    const growing = new GrowingDocument("m");
    growing.update("one\n\ntwo\n\nthree\n\n", true);
    expect(growing.update("other", true).map(htmlOf)).toEqual(["<p>other</p>\n"]);
  });
});

describe("languages", () => {
  it("have the names that models write", () => {
    expect(["py", "TSX", "sh", "html", "c++", "brainfuck", "constructor"].map(languageOf)).toEqual([
      "python", "typescript", "bash", "xml", "cpp", null, null,
    ]);
  });
});
