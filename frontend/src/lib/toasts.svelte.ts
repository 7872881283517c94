export interface Toast {
  id: number;
  text: string;
  kind: "error" | "info";
}

const SHOWN_MS = 7000;
let last = 0;

/** Short lines at the edge of the page; each goes by itself or when dismissed. */
class Toasts {
  list = $state<Toast[]>([]);

  show(text: string, kind: Toast["kind"] = "error"): void {
    const id = ++last;
    this.list = [...this.list.filter((toast) => toast.text !== text), { id, text, kind }].slice(-3);
    setTimeout(() => this.dismiss(id), SHOWN_MS);
  }

  /** A new attempt makes old complaints stale. */
  clear(): void {
    this.list = [];
  }

  dismiss(id: number): void {
    this.list = this.list.filter((toast) => toast.id !== id);
  }
}

export const toasts = new Toasts();
