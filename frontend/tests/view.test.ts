// @vitest-environment jsdom
import { afterEach, describe, expect, it, vi } from "vitest";
import { drawFormulas } from "../src/lib/markdown/formulas";
import { safeNodes } from "../src/lib/markdown/sanitize";
import { MarkdownView } from "../src/lib/markdown/view";
import { PATIENCE } from "./patience";

afterEach(() => document.body.replaceChildren());

function place(): HTMLElement {
  const root = document.createElement("div");
  document.body.append(root);
  return root;
}

/** The text written in steps of so many characters, then whole. */
function grown(text: string, step: number): HTMLElement {
  const root = place();
  const view = new MarkdownView(root, "m");
  for (let end = step; end < text.length; end += step) view.update(text.slice(0, end), true);
  view.update(text, false);
  return root;
}

function whole(text: string): HTMLElement {
  const root = place();
  new MarkdownView(root, "m").update(text, false);
  return root;
}

const ANSWER = [
  "# Head *line*\n\nA paragraph of **words**, see https://example.org/a and example.com today.\n",
  "- one\n- two\n  - three\n\n1. x\n2. y\n\n> quoted\n> more\n",
  "```py\nx = 1\n\n\nprint(x)\n```\n\n~~~\nopen `tick\n~~~\n",
  "| a | b |\n|--|--:|\n| 1 | 2 |\n\nLast $x$ words, and some more of them\nsecond line  \nthird",
].join("\n");

describe("a growing text on the page", () => {
  it.each([1, 2, 3, 5, 7, 40])("ends as a whole one, written in steps of %i", (step) => {
    expect(grown(ANSWER, step).innerHTML).toBe(whole(ANSWER).innerHTML);
  });

  it("shows at every step what a fresh page shows, but links that are not whole", () => {
    const root = place();
    const view = new MarkdownView(root, "m");
    for (let end = 1; end <= ANSWER.length; end += 1) {
      view.update(ANSWER.slice(0, end), true);
      const fresh = place();
      new MarkdownView(fresh, "f").update(ANSWER.slice(0, end), true);
      expect(root.textContent.trimEnd(), `after ${end}`).toBe(fresh.textContent.trimEnd());
      fresh.remove();
    }
  });

  it("keeps the nodes of what is finished, and the text node that grows", () => {
    const root = place();
    const view = new MarkdownView(root, "m");
    view.update("First.\n\nSecond word", true);
    const [first, second] = root.querySelectorAll("p");
    const text = second?.firstChild;
    view.update("First.\n\nSecond word and another", true);
    view.update("First.\n\nSecond word and another one", true);
    expect([...root.querySelectorAll("p")]).toEqual([first, second]);
    expect(second?.firstChild).toBe(text);
    expect(second?.textContent).toBe("Second word and another one");
  });

  const rows = (count: number, row: (number: number) => string): string => Array.from({ length: count }, (_, index) => row(index)).join("\n");
  const entry = (number: number): string => `- entry **${number}** with \`x\``;
  const row = (number: number): string => `| row ${number} | \`${number}\` |`;

  it.each([
    ["a list", "li", rows(40, entry), rows(60, entry)],
    ["a table", "tbody tr", `| a | b |\n|--|--|\n${rows(40, row)}`, `| a | b |\n|--|--|\n${rows(60, row)}`],
  ])("adds to %s that is being written", (_, selector, before, after) => {
    const root = place();
    const view = new MarkdownView(root, "m");
    view.update(before, true);
    const first = [...root.querySelectorAll(selector)].slice(0, 39);
    for (let end = before.length; end < after.length; end += 7) view.update(after.slice(0, end), true);
    view.update(after, true);
    const now = [...root.querySelectorAll(selector)];
    expect(now).toHaveLength(60);
    expect(now.slice(0, 39).every((element, index) => element === first[index])).toBe(true);
    view.update(after, false);
    expect(root.innerHTML).toBe(whole(after).innerHTML);
  });

  it("turns a list into paragraphs with its first empty line", () => {
    const root = place();
    const view = new MarkdownView(root, "m");
    const text = rows(30, (number) => `${number + 1}. entry ${number}`);
    view.update(`${text}\n`, true);
    expect(root.querySelector("li > p")).toBeNull();
    view.update(`${text}\n\n31. last\n`, true);
    expect(root.querySelectorAll("li > p")).toHaveLength(31);
  });

  it("adds lines to code that is being written", () => {
    const root = place();
    const view = new MarkdownView(root, "m");
    view.update("```py\nx = 1", true);
    const text = root.querySelector("code")?.firstChild;
    view.update("```py\nx = 1\ny = 2\n", true);
    expect(root.querySelector("code")?.firstChild).toBe(text);
    expect(text?.textContent).toMatch(/^x = 1\ny = 2\n?$/);
  });

  it("colours code when it is complete", async () => {
    const root = place();
    const view = new MarkdownView(root, "m");
    view.update("```py\nimport os\n", true);
    await Promise.resolve();
    expect(root.querySelector(".hljs-keyword")).toBeNull();
    view.update("```py\nimport os\n```\n\nthen\n", true);
    await vi.waitFor(() => expect(root.querySelector(".hljs-keyword")?.textContent).toBe("import"), PATIENCE);
    expect(root.querySelector("code")?.textContent).toBe("import os\n");
  });
});

describe("what is shown", () => {
  it.each([
    '<img src=x onerror="alert(1)">',
    "<svg><script>alert(1)</script></svg>",
    '<a href="javascript:alert(1)">x</a>',
    '<a href="data:text/html,x">x</a>',
    '<iframe srcdoc="x"></iframe>',
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    '<form action="https://example.org"><input name="a"></form>',
    '<p style="position:fixed" onclick="alert(1)">x</p>',
    '<style>*{background:url("https://example.org")}</style>',
    '<audio src="https://example.org/x"></audio>',
  ])("is safe even if the renderer let %s through", (html) => {
    const root = place();
    root.append(safeNodes(html));
    expect(root.querySelector("img, svg, script, iframe, form, style, math, audio, video, object, embed")).toBeNull();
    for (const element of root.querySelectorAll("*")) {
      for (const { name, value } of element.attributes) expect(`${name}=${value}`).not.toMatch(/^on|^style|script:|data:/);
    }
  });

  it("has tasks, and the addresses of links and footnotes", () => {
    const root = whole("- [x] done[^1]\n\nhttps://example.org\n\n[^1]: note");
    expect(root.querySelector<HTMLInputElement>("input[type=checkbox]")?.disabled).toBe(true);
    expect([...root.querySelectorAll("a")].map((link) => link.getAttribute("href"))).toEqual([
      "#fn-m-1",
      "https://example.org",
      "#fnref-m-1",
    ]);
  });
});

describe("formulas", () => {
  const drawnFormula = async (tex: string): Promise<HTMLElement> => {
    const root = whole(`\\(${tex}\\)`);
    const formula = root.querySelector<HTMLElement>(".math");
    if (!formula) throw new Error("no formula");
    drawFormulas(root);
    await vi.waitFor(() => expect(formula.dataset["drawn"]).toBeDefined(), PATIENCE);
    return formula;
  };

  it("are drawn", async () => {
    const formula = await drawnFormula("\\int_0^1 x^2\\,dx");
    expect(formula.dataset["drawn"]).toBe("yes");
    expect(formula.querySelector("math")).not.toBeNull();
  });

  it.each(["\\frac{", "\\unknown", "\\def\\a{\\a\\a}\\a"])("that KaTeX does not know show their source: %s", async (tex) => {
    const formula = await drawnFormula(tex);
    expect(formula.dataset["drawn"]).toBe("failed");
    expect(formula.textContent).toBe(`\\(${tex}\\)`);
    expect(formula.title).not.toBe("");
  });

  it.each([
    "\\href{javascript:alert(1)}{x}",
    "\\url{javascript:alert(1)}",
    "\\htmlData{x=1}{y}",
    "\\htmlId{app}{y}",
    "\\htmlStyle{position:fixed}{y}",
    "\\includegraphics{https://example.org/x.png}",
    "\\text{<img src=x onerror=alert(1)>}",
  ])("cannot write HTML: %s", async (tex) => {
    const formula = await drawnFormula(tex);
    expect(formula.querySelector("a, img, script, [data-x], #app, [style*=fixed], [onerror]")).toBeNull();
  });
});
