/** The keys of a menu: arrows, Home and End move the focus among `items`, round at both ends. Whether this was one of them. */
export function moveFocus(event: KeyboardEvent, items: HTMLElement[]): boolean {
  const place = items.indexOf(document.activeElement as HTMLElement);
  const steps: Record<string, number> = { ArrowDown: place + 1, ArrowUp: Math.max(place, 0) - 1, Home: 0, End: -1 };
  const step = steps[event.key];
  if (step === undefined) return false;
  items.at(step % items.length)?.focus();
  event.preventDefault();
  event.stopPropagation();
  return true;
}
