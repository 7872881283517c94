import type { KatexOptions } from "katex";

type Katex = typeof import("katex").default;

/**
 * What a formula may do: no links, no classes, no pictures (`trust`), no endless macros, nothing larger than the page.
 * Errors are thrown, so that the source stays instead of a red line.
 */
const LIMITS: KatexOptions = { trust: false, strict: "ignore", maxSize: 20, maxExpand: 500, throwOnError: true };

/** Beyond this many characters it is no formula that anybody reads. */
const LONGEST = 5000;

const KEPT_FORMULAS = 300;
const kept = new Map<string, DocumentFragment | string>();

let katex: Katex | undefined;
let loading: Promise<void> | undefined;

/** Load KaTeX with its fonts. */
function load(): Promise<void> {
  loading ??= Promise.all([import("katex"), import("katex/dist/katex.min.css")]).then(([module]) => {
    katex = module.default;
  });
  return loading;
}

/** Draw all formulas in `root`: at once when KaTeX is there, else as soon as it is. */
export function drawFormulas(root: ParentNode): void {
  const formulas = root.querySelectorAll<HTMLElement>(".math:not([data-drawn])");
  if (formulas.length === 0) return;
  if (katex) for (const formula of formulas) draw(katex, formula);
  else void load().then(() => drawFormulas(root), () => formulas.forEach(leave));
}

/** KaTeX could not be loaded: the source stays. */
function leave(formula: HTMLElement): void {
  formula.dataset["drawn"] = "source";
}

function draw(renderer: Katex, formula: HTMLElement): void {
  const tex = formula.dataset["tex"] ?? "";
  const displayMode = formula.dataset["display"] === "yes";
  const drawing = drawn(renderer, tex, displayMode);
  if (typeof drawing === "string") {
    formula.dataset["drawn"] = "failed";
    formula.title = drawing;
    return;
  }
  formula.dataset["drawn"] = "yes";
  formula.replaceChildren(drawing.cloneNode(true));
}

/** The formula as nodes, or why it cannot be drawn. Remembered, because the end of a growing text is drawn again and again. */
function drawn(renderer: Katex, tex: string, displayMode: boolean): DocumentFragment | string {
  const key = `${displayMode}${tex}`;
  const known = kept.get(key);
  if (known !== undefined) return known;
  const drawing = tex.length > LONGEST ? "This formula is too long." : attempt(renderer, tex, displayMode);
  if (kept.size >= KEPT_FORMULAS) kept.clear();
  kept.set(key, drawing);
  return drawing;
}

function attempt(renderer: Katex, tex: string, displayMode: boolean): DocumentFragment | string {
  const place = document.createElement("span");
  try {
    renderer.render(tex, place, { ...LIMITS, displayMode });
  } catch (error) {
    // Not TeX that KaTeX knows, or too much of it: the reader sees the source, and the reason beside the pointer.
    return error instanceof Error ? error.message : String(error);
  }
  const nodes = document.createDocumentFragment();
  nodes.append(...place.childNodes);
  return nodes;
}
