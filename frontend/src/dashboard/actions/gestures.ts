/** Gestures on the drawn tree, whatever draws its cards: they carry `data-name`. */

const CARD = "[data-testid=tree-node]";
/** Pixels before a press becomes a drag. */
const THRESHOLD = 8;

export interface Gestures {
  /** Whether the node can be dropped there. */
  fits: (node: string, parent: string) => boolean;
  ondrop: (node: string, parent: string) => void;
  /** The context menu of a node, at that place of the window. */
  onmenu: (node: string, x: number, y: number) => void;
}

function cardAt(target: EventTarget | null): HTMLElement | null {
  return target instanceof Element ? target.closest<HTMLElement>(CARD) : null;
}

/** Listens on the tree's region; returns what ends that. A mouse drags; fingers scroll, and have the dialog. */
export function listen(region: HTMLElement, gestures: Gestures): () => void {
  const ending = new AbortController();
  const options = { signal: ending.signal };
  let dragged: { card: HTMLElement; x: number; y: number; begun: boolean } | null = null;
  let over: HTMLElement | null = null;

  function mark(card: HTMLElement | null): void {
    over?.removeAttribute("data-drop");
    over = card;
    over?.setAttribute("data-drop", "");
  }

  function end(): void {
    dragged?.card.removeAttribute("data-dragged");
    region.removeAttribute("data-dragging");
    mark(null);
    dragged = null;
  }

  function targetOf(event: PointerEvent): HTMLElement | null {
    const card = cardAt(document.elementFromPoint(event.clientX, event.clientY));
    const [node, parent] = [dragged?.card.dataset["name"], card?.dataset["name"]];
    return card && node && parent && gestures.fits(node, parent) ? card : null;
  }

  region.addEventListener(
    "pointerdown",
    (event) => {
      const card = event.button === 0 && event.pointerType === "mouse" ? cardAt(event.target) : null;
      if (card) dragged = { card, x: event.clientX, y: event.clientY, begun: false };
    },
    options,
  );
  window.addEventListener(
    "pointermove",
    (event) => {
      if (!dragged) return;
      if (!dragged.begun && Math.hypot(event.clientX - dragged.x, event.clientY - dragged.y) < THRESHOLD) return;
      dragged.begun = true;
      dragged.card.setAttribute("data-dragged", "");
      region.setAttribute("data-dragging", "");
      event.preventDefault();
      mark(targetOf(event));
    },
    options,
  );
  window.addEventListener(
    "pointerup",
    (event) => {
      if (!dragged) return;
      const [node, parent, begun] = [dragged.card.dataset["name"], targetOf(event)?.dataset["name"], dragged.begun];
      end();
      if (!begun) return;
      // The click that follows a drag must not select the card.
      window.addEventListener("click", (click) => click.stopPropagation(), { capture: true, once: true, signal: AbortSignal.timeout(50) });
      if (node && parent) gestures.ondrop(node, parent);
    },
    options,
  );
  window.addEventListener("keydown", (event) => event.key === "Escape" && end(), options);
  region.addEventListener(
    "contextmenu",
    (event) => {
      const card = cardAt(event.target);
      const name = card?.dataset["name"];
      if (!card || !name) return;
      event.preventDefault();
      const box = card.getBoundingClientRect();
      // The keyboard's menu key has no place of its own.
      const [x, y] = event.clientX || event.clientY ? [event.clientX, event.clientY] : [box.left + box.width / 2, box.top + box.height / 2];
      gestures.onmenu(name, x, y);
    },
    options,
  );
  return () => {
    end();
    ending.abort();
  };
}
