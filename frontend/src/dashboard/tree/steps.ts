import type { Layout, Sizes } from "./layout";

export type Direction = "ArrowUp" | "ArrowDown" | "ArrowLeft" | "ArrowRight";

/**
 * The card that the eye finds next from `name` in a direction; null at the border. Up and down lead to the nearest row,
 * left and right stay in the row as long as there is a card. Pure.
 */
export function neighbour(layout: Layout, name: string, direction: Direction, sizes: Sizes): string | null {
  const from = layout.nodes.find((card) => card.node.name === name);
  if (!from) return null;
  const across = direction === "ArrowLeft" || direction === "ArrowRight";
  const sign = direction === "ArrowRight" || direction === "ArrowDown" ? 1 : -1;
  const ahead = layout.nodes
    .map((card) => ({ name: card.node.name, dx: sign * (card.x - from.x), dy: sign * (card.y - from.y) }))
    .filter(({ dx, dy }) => (across ? dx >= sizes.cardWidth / 2 && Math.abs(dy) < sizes.cardHeight : dy >= sizes.cardHeight / 2));
  const nearest = Math.min(...ahead.map(({ dx, dy }) => (across ? dx : dy)));
  const band = across ? sizes.cardWidth / 2 : sizes.cardHeight / 2;
  const candidates = ahead.filter(({ dx, dy }) => (across ? dx : dy) < nearest + band);
  const aside = ({ dx, dy }: { dx: number; dy: number }): number => Math.abs(across ? dy : dx);
  return candidates.sort((a, b) => aside(a) - aside(b))[0]?.name ?? null;
}
