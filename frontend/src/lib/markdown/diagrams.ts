import { t } from "../i18n.svelte";
import { isDark, THEME_CHANGED } from "../theme";

/** Fonts that a picture can use, too: inside `<img>` there are none of ours. */
const FONT = 'Arial, "Liberation Sans", "Noto Sans", sans-serif';

const LONGEST = 20_000;

let number = 0;

/** Settings that a diagram's own `%%{init: …}%%` must not change. */
const FIXED = [
  "secure",
  "securityLevel",
  "startOnLoad",
  "suppressErrorRendering",
  "maxTextSize",
  "maxEdges",
  "htmlLabels",
  "flowchart",
  "fontFamily",
  "themeCSS",
  "themeVariables",
  "dompurifyConfig",
];

/**
 * A Mermaid diagram as an SVG document. Throws when the source is none.
 * `strict` leaves out scripts, HTML and click actions. The caller shows it as an image, where an SVG can neither run
 * nor load anything, whatever got through.
 */
async function draw(source: string): Promise<string> {
  if (source.length > LONGEST) throw new Error(t("markdown.diagramTooLong"));
  const { default: mermaid } = await import("mermaid");
  mermaid.initialize({
    startOnLoad: false,
    securityLevel: "strict",
    suppressErrorRendering: true,
    maxTextSize: LONGEST,
    maxEdges: 400,
    htmlLabels: false,
    flowchart: { htmlLabels: false },
    theme: isDark() ? "dark" : "neutral",
    fontFamily: FONT,
    secure: FIXED,
  });
  number += 1;
  const { svg } = await mermaid.render(`diagram-${number}`, source);
  return svg;
}

/** Show the diagram of a finished block of Mermaid above its source, which can be folded out; errors are told there. */
export async function drawDiagram(block: HTMLElement): Promise<void> {
  const source = block.querySelector("code")?.textContent ?? "";
  try {
    const svg = await draw(source);
    showPicture(block, svg);
  } catch (error) {
    // Not a diagram that Mermaid knows: the source stays, with the reason.
    showReason(block, error instanceof Error ? error.message : String(error));
  }
}

function showPicture(block: HTMLElement, svg: string): void {
  const picture = block.querySelector("img") ?? document.createElement("img");
  const [width, height] = size(svg);
  picture.alt = t("markdown.diagram");
  picture.width = width;
  picture.height = height;
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  if (picture.isConnected) return;
  followTheme();
  block.querySelector("pre")?.before(picture);
  block.dataset["drawn"] = "yes";
}

let following = false;

/** Draw the diagrams of the page again when it becomes dark or light: their colours are part of the pictures. */
function followTheme(): void {
  if (following) return;
  following = true;
  const again = (): void => {
    for (const block of document.querySelectorAll<HTMLElement>(".diagram[data-drawn=yes]")) void drawDiagram(block);
  };
  addEventListener(THEME_CHANGED, again);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
}

/** The size that the drawing was made for, from its view box. */
function size(svg: string): [number, number] {
  const box = /viewBox="[-\d.]+ [-\d.]+ ([\d.]+) ([\d.]+)"/.exec(svg);
  return [Math.ceil(Number(box?.[1] ?? 600)), Math.ceil(Number(box?.[2] ?? 400))];
}

function showReason(block: HTMLElement, reason: string): void {
  block.querySelector(".reason")?.remove();
  const line = document.createElement("p");
  line.className = "reason";
  line.textContent = t("markdown.noDiagram", { reason: reason.split("\n")[0] ?? "" });
  block.append(line);
  block.dataset["drawn"] = "failed";
}
