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
  const stick = (value: boolean): void => {
    stuck = value;
    // Away from the end, the browser keeps what is seen in its place when something above it changes its height.
    scroller.style.overflowAnchor = value ? "none" : "auto";
    report(value);
  };
  const scrollToEnd = (): void => {
    scroller.scrollTop = scroller.scrollHeight;
    last = scroller.scrollTop; // less than before where the content has become shorter: not the reader's move
  };
  const toBottom = (): void => {
    scrollToEnd();
    stick(true);
  };
  const onScroll = (): void => {
    // Only a move upward is the reader's: our own scrolling is reported late, when the text has grown already.
    if (isAtBottom(scroller)) stick(true);
    else if (scroller.scrollTop < last) stick(false);
    last = scroller.scrollTop;
  };
  const observer = new ResizeObserver(() => {
    if (stuck) scrollToEnd();
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
