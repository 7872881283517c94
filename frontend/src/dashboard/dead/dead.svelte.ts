import { ApiError, errorText, query, request } from "../../lib/api";
import { Latest } from "../../lib/latest";
import { follow } from "../../lib/sse";
import { toasts } from "../../lib/toasts.svelte";

/** A message that was given up on, without any of its user's text. */
export interface DeadLetter {
  id: string;
  /** Unix seconds. */
  when: number | null;
  /** Null for a message that is no job. */
  model: string | null;
  user: string | null;
  node: string;
  reason: string;
  attempts: number | null;
  trail: string[];
  faults: string[];
}

export interface Replay {
  id: number;
  letter: string;
  model: string;
  user: string;
  by: string;
  state: "waiting" | "running" | "answered" | "failed";
  tokens: number;
  node: string;
  error: string;
  /** Its user has the answer. */
  given: boolean;
  created: string;
}

/** What can be changed in a job before it runs again. */
export interface EditableJob {
  model: string;
  messages?: { role: string; content: string }[];
  prompt?: string;
  sampling: Record<string, unknown>;
}

export interface Content {
  job: EditableJob | null;
  raw: string | null;
}

/** What the stream tells. `changes`: how often operators took or dropped letters. */
interface Overview {
  waiting: number | null;
  changes: number;
  replays: Replay[];
}

const PATH = "/api/operate/dead";
/** A count alone does not tell that one letter went and another came. */
const READ_AGAIN_MS = 60_000;

/** The dead letters and the replays, as long as the section is open. */
export class DeadStore {
  letters = $state.raw<DeadLetter[] | null>(null);
  /** How many there are, of which `letters` are the oldest. */
  waiting = $state<number | null>(null);
  replays = $state.raw<Replay[]>([]);
  /** Whether this operator may read what users wrote. */
  readsTexts = $state(false);
  problem = $state<ApiError | null>(null);
  chosen = $state<Set<string>>(new Set());
  #following: AbortController | null = null;
  /** What the list was read for: it is read again when the stream tells of something else. */
  #readFor = "";
  #readAt = 0;
  readonly #reads = new Latest();

  start(): void {
    this.stop();
    this.problem = null;
    this.#following = new AbortController();
    void this.#listen(this.#following.signal);
  }

  stop(): void {
    this.#following?.abort();
    this.#following = null;
  }

  choose(id: string, on: boolean): void {
    const chosen = new Set(this.chosen);
    if (on) chosen.add(id);
    else chosen.delete(id);
    this.chosen = chosen;
  }

  chooseAll(on: boolean): void {
    this.chosen = new Set(on ? this.letters?.map((letter) => letter.id) : []);
  }

  /** Run jobs again; false if the server refused. */
  async replay(ids: string[], changes?: Partial<EditableJob>): Promise<boolean> {
    return this.#act("replay", changes ? { ids, changes } : { ids });
  }

  async drop(ids: string[]): Promise<boolean> {
    return this.#act("drop", { ids });
  }

  async content(id: string): Promise<Content> {
    return (await (await request("GET", `${PATH}/content${query({ id })}`)).json()) as Content;
  }

  async answer(replay: Replay): Promise<string> {
    const response = await request("GET", `${PATH}/replays/${replay.id}/answer`);
    return ((await response.json()) as { answer: string }).answer;
  }

  async #act(action: string, body: unknown): Promise<boolean> {
    try {
      await request("POST", `${PATH}/${action}`, { body });
      this.chosen = new Set();
      await this.#read();
      return true;
    } catch (error) {
      toasts.show(errorText(error));
      await this.#read();
      return false;
    }
  }

  async #listen(signal: AbortSignal): Promise<void> {
    try {
      await follow(`${PATH}/stream`, {
        signal,
        onEvent: ({ event, data }) => {
          if (event === "dead") this.#show(JSON.parse(data) as Overview);
        },
      });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.problem = error;
    }
  }

  #show(overview: Overview): void {
    this.replays = overview.replays;
    const ended = overview.replays.filter((replay) => replay.state === "answered" || replay.state === "failed").length;
    const readFor = `${overview.waiting} ${overview.changes} ${overview.replays[0]?.id} ${ended}`;
    if (readFor === this.#readFor && Date.now() - this.#readAt < READ_AGAIN_MS) return;
    this.#readFor = readFor;
    void this.#read();
  }

  async #read(): Promise<void> {
    this.#readAt = Date.now();
    const isLatest = this.#reads.begin();
    try {
      const response = await request("GET", PATH);
      const list = (await response.json()) as { letters: DeadLetter[]; waiting: number | null; reads_texts: boolean };
      if (!isLatest()) return;
      this.letters = list.letters;
      this.waiting = list.waiting;
      this.readsTexts = list.reads_texts;
      const present = new Set(list.letters.map((letter) => letter.id));
      this.chosen = new Set([...this.chosen].filter((id) => present.has(id)));
      this.problem = null;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.problem = error;
    }
  }
}
