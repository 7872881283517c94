/** Nearer to the end than this (in pixels), the reader counts as being at the bottom. */
const NEAR_PX = 48;

/** Whether a scrolled element shows its end. */
export function isAtBottom(element: { scrollTop: number; scrollHeight: number; clientHeight: number }): boolean {
  return element.scrollHeight - element.scrollTop - element.clientHeight <= NEAR_PX;
}

/**
 * Keep `scroller` at its end while `content` grows, for as long as the reader is there.
 * `report` hears whether that is so. Returns `toBottom` and `stop`.
 */
export function stickToBottom(scroller: HTMLElement, content: HTMLElement, report: (atBottom: boolean) => void) {
  let stuck = true;
  let last = scroller.scrollTop;
  const toBottom = (): void => {
    stuck = true;
    scroller.scrollTop = scroller.scrollHeight;
    report(true);
  };
  const onScroll = (): void => {
    // Only a move upward is the reader's: our own scrolling is reported late, when the text has grown already.
    if (isAtBottom(scroller)) stuck = true;
    else if (scroller.scrollTop < last) stuck = false;
    last = scroller.scrollTop;
    report(stuck);
  };
  const observer = new ResizeObserver(() => {
    if (stuck) scroller.scrollTop = scroller.scrollHeight;
  });
  observer.observe(content);
  observer.observe(scroller);
  scroller.addEventListener("scroll", onScroll, { passive: true });
  return {
    toBottom,
    stop: () => {
      observer.disconnect();
      scroller.removeEventListener("scroll", onScroll);
    },
  };
}
