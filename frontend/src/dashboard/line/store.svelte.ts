import { ApiError } from "../../lib/api";
import { follow } from "../../lib/sse";
import type { Connection } from "../store.svelte";
import { type PromptAccess, calls } from "./calls";
import { type AnyJob, EMPTY, type Filter, type Line, filtered, merged } from "./line";

const LOOK_UP_MS = 400;

/** What waits and runs, live, and what of it is shown. */
export class LineStore {
  line = $state.raw<Line>(EMPTY);
  connection = $state<Connection>("connecting");
  filter = $state<Filter>({ text: "", model: "", job_class: "" });
  access = $state<PromptAccess>({ allowed: false, may_change: false });
  /** Seconds since the line was made: what the ages have grown by. */
  passed = $state(0);
  /** Jobs beyond the listed ones that the search found. */
  #found = $state.raw<Line>(EMPTY);
  #received = 0;
  #following: AbortController | null = null;
  #clock: ReturnType<typeof setInterval> | undefined;
  #lookingUp: ReturnType<typeof setTimeout> | undefined;

  waiting = $derived(filtered(merged(this.line.waiting, this.#found.waiting), this.filter));
  running = $derived(filtered(this.line.running, this.filter));
  waitingCount = $derived(this.line.models.reduce((sum, model) => sum + model.waiting, 0));
  runningCount = $derived(this.line.models.reduce((sum, model) => sum + model.running, 0));

  start(): void {
    this.#following = new AbortController();
    this.#clock = setInterval(() => (this.passed = (performance.now() - this.#received) / 1000), 1000);
    void this.#listen(this.#following.signal);
    void calls.promptAccess().then((access) => (this.access = access), ignored);
  }

  stop(): void {
    this.#following?.abort();
    clearInterval(this.#clock);
    clearTimeout(this.#lookingUp);
  }

  /** Search in what is listed; in a longer line the nodes are asked, too. */
  search(text: string): void {
    this.filter.text = text;
    this.#found = EMPTY;
    clearTimeout(this.#lookingUp);
    const sought = text.trim();
    if (sought && !this.line.complete) this.#lookingUp = setTimeout(() => void this.#lookUp(sought), LOOK_UP_MS);
  }

  /** The newest state of a job; null once it has ended. */
  job(id: string): AnyJob | null {
    const all: AnyJob[] = [...this.line.running, ...this.line.waiting, ...this.#found.waiting];
    return all.find((job) => job.request_id === id) ?? null;
  }

  async #lookUp(text: string): Promise<void> {
    const found = await Promise.all([calls.find({ request_id: text }), calls.find({ user: text })]).catch(ignored);
    if (!found || this.filter.text.trim() !== text) return;
    const [byId, byUser] = found;
    this.#found = { ...byId, waiting: merged(byId.waiting, byUser.waiting) };
  }

  async #listen(signal: AbortSignal): Promise<void> {
    try {
      await follow(calls.streamPath, {
        signal,
        onDrop: () => (this.connection = "reconnecting"),
        onEvent: ({ event, data }) => {
          if (event === "line") this.#show(JSON.parse(data) as Line);
        },
      });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.connection = "refused";
    }
  }

  #show(line: Line): void {
    this.connection = "live";
    this.#received = performance.now();
    this.passed = 0;
    this.line = line;
  }
}

/** The list stays as it is: its stream says what is wrong. */
function ignored(error: unknown): null {
  if (error instanceof ApiError) return null;
  throw error;
}
