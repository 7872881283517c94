import { SvelteSet } from "svelte/reactivity";

/** What the reader chose to see of the tree. */
export class TreeView {
  mode = $state<"drawing" | "table">("drawing");
  /** What is sought. */
  text = $state("");
  /** Nodes whose subtrees are hidden. */
  collapsed = new SvelteSet<string>();

  matches(name: string): boolean {
    return name.toLowerCase().includes(this.text.trim().toLowerCase());
  }

  get searching(): boolean {
    return this.text.trim() !== "";
  }

  toggle(name: string): void {
    if (!this.collapsed.delete(name)) this.collapsed.add(name);
  }
}
