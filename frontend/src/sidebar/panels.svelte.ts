/** A dialog that lies over the page; at most one is open. */
export type Panel = { name: "search" } | { name: "shortcuts" } | { name: "transfer" } | { name: "share" | "export"; conversation: string };

class Panels {
  current = $state.raw<Panel | null>(null);

  open(panel: Panel): void {
    this.current = panel;
  }

  close(): void {
    this.current = null;
  }
}

export const panels = new Panels();
