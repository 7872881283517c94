/** This far outside of what is seen (in pixels), things are made ready. */
const MARGIN_PX = 1200;
/** Work on what came near goes on for so long at a time, then the browser draws a frame. */
const BUDGET_MS = 8;

/** `prepared`: it is not near, but is to be made ready all the same. */
export type Distance = "near" | "prepared" | "far";
type Report = (distance: Distance) => void;

/**
 * Tells elements inside a scrolled one when they come near to what is seen, and when they leave.
 * Arrivals are told in small portions, from the newest on: each may cost milliseconds, and many come at once.
 */
export class Nearness {
  readonly #observer: IntersectionObserver;
  readonly #reports = new Map<Element, Report>();
  #arrived: Element[] = [];
  /** Those that are prepared when nothing arrives. */
  #waiting: Element[] = [];
  #frame = 0;

  constructor(scroller: HTMLElement) {
    this.#observer = new IntersectionObserver((entries) => this.#sort(entries), {
      root: scroller,
      rootMargin: `${MARGIN_PX}px 0px`,
    });
  }

  /** Watch an element; returns how to end that. */
  watch(element: Element, report: Report): () => void {
    this.#reports.set(element, report);
    this.#observer.observe(element);
    return () => {
      this.#observer.unobserve(element);
      this.#reports.delete(element);
    };
  }

  /** Prepare all that is watched now. */
  prepareAll(): void {
    this.#waiting = [...this.#reports.keys()];
    this.#work();
  }

  stop(): void {
    cancelAnimationFrame(this.#frame);
    this.#observer.disconnect();
  }

  #sort(entries: IntersectionObserverEntry[]): void {
    for (const { target, isIntersecting } of entries) {
      this.#arrived = this.#arrived.filter((element) => element !== target);
      if (isIntersecting) this.#arrived.push(target);
      else this.#reports.get(target)?.("far");
    }
    this.#work();
  }

  #work(): void {
    const started = performance.now();
    while (performance.now() - started < BUDGET_MS && this.#next()) continue;
    cancelAnimationFrame(this.#frame);
    if (this.#arrived.length + this.#waiting.length > 0) this.#frame = requestAnimationFrame(() => this.#work());
  }

  /** Tell one element; false if there is none. */
  #next(): boolean {
    const arrived = this.#arrived.pop();
    const element = arrived ?? this.#waiting.pop();
    if (!element) return false;
    this.#reports.get(element)?.(arrived ? "near" : "prepared");
    return true;
  }
}

/** About how high a text will be, in pixels, in a column as wide as ours. Called for all messages at once: no copies. */
export function estimatedHeight(text: string, charactersPerLine: number): number {
  let lines = 0;
  let start = 0;
  while (start <= text.length) {
    const next = text.indexOf("\n", start);
    const end = next < 0 ? text.length : next;
    lines += Math.max(1, Math.ceil((end - start) / charactersPerLine));
    start = end + 1;
  }
  return 40 + 26 * lines;
}
