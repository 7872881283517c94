import { errorText } from "./api";
import { toasts } from "./toasts.svelte";

/** What a dialog or a form has begun. Its reader may close it and open another one before that ends. */
export class Task {
  working = $state(false);
  problem = $state("");
  #left = false;

  /** `finish`: closes the dialog, when the work was done and it is still this one that is open. */
  constructor(readonly finish: () => void) {}

  /** The dialog is gone: what goes wrong from now on is said elsewhere. */
  leave(): void {
    this.#left = true;
  }

  /** One piece of work at a time; `subject`: what a problem is about, for a reader who sees nothing else of it. */
  async run(subject: string, work: () => Promise<void>): Promise<void> {
    if (this.working) return;
    this.working = true;
    this.problem = "";
    try {
      await work();
      if (!this.#left) this.finish();
    } catch (error) {
      if (this.#left) toasts.show(`${subject}: ${errorText(error)}`);
      else this.problem = errorText(error);
    } finally {
      this.working = false;
    }
  }
}
