export interface ToastAction {
  label: string;
  run: () => void;
}

export interface Toast {
  id: number;
  text: string;
  kind: "error" | "info";
  action?: ToastAction | undefined;
}

const SHOWN_MS = 7000;
/** Something to decide about stays longer. */
const ACTION_SHOWN_MS = 12_000;
let last = 0;

/** Short lines at the edge of the page. Errors stay until they are dismissed; what is no error goes by itself. */
class Toasts {
  list = $state<Toast[]>([]);

  show(text: string, kind: Toast["kind"] = "error", action?: ToastAction): void {
    const id = ++last;
    this.list = [...this.list.filter((toast) => toast.text !== text), { id, text, kind, action }].slice(-3);
    if (kind === "info") setTimeout(() => this.dismiss(id), action ? ACTION_SHOWN_MS : SHOWN_MS);
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
