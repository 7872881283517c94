/**
 * Keep `--app-height` at the height that is really visible.
 * 100dvh ignores the on-screen keyboard on iOS, so the composer would hide behind it.
 */
export function trackVisibleHeight(): void {
  const viewport = window.visualViewport;
  if (!viewport) return;
  const update = (): void => {
    const keyboardOpen = viewport.height < window.innerHeight - 1 && viewport.scale === 1;
    document.documentElement.style.setProperty("--app-height", keyboardOpen ? `${viewport.height}px` : "100dvh");
  };
  viewport.addEventListener("resize", update);
  update();
}
