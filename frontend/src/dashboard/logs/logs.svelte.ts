import { ApiError, query, request } from "../../lib/api";
import { follow } from "../../lib/sse";

export const LEVELS = ["debug", "info", "warning", "error"] as const;
export type Level = (typeof LEVELS)[number];

export interface LogLine {
  process: string;
  /** Unix seconds; null where the line does not say. */
  at: number | null;
  level: Level;
  text: string;
}

/** A line that is shown, with a number of its own. */
export interface ShownLine extends LogLine {
  number: number;
}

export interface LogProcess {
  name: string;
  bytes: number;
}

export interface Choice {
  /** Empty for all. */
  process: string;
  level: Level;
  /** A request id, or any other text. */
  request: string;
}

const PATH = "/api/operate/logs";
/** Lines that the page keeps; older ones make room. */
export const KEPT = 2000;
const FIRST = 500;

/** The lines with newer ones behind them, numbered on, not more than are kept. */
export function appended(lines: ShownLine[], fresh: LogLine[]): ShownLine[] {
  let number = lines.at(-1)?.number ?? 0;
  const numbered = fresh.map((line) => ({ ...line, number: ++number }));
  return [...lines, ...numbered].slice(-KEPT);
}

/** What a line begins with and the page shows in its own columns: its time and its level. */
const BEGINNINGS = [
  /^timestamp='[^']*' level='\w+' /,
  /^\d{4}-\d\d-\d\d[ T][\d:.]+(?:Z|[+-]\d\d:\d\d)? \[\w+\s*\]\s*/,
];

/** The line without its beginning. */
export function message(line: LogLine): string {
  const beginning = BEGINNINGS.find((pattern) => pattern.test(line.text));
  return beginning ? line.text.replace(beginning, "") : line.text;
}

/** The processes' logs, followed as they are written. */
export class LogStore {
  processes = $state.raw<LogProcess[]>([]);
  lines = $state.raw<ShownLine[]>([]);
  connection = $state<"connecting" | "live" | "reconnecting">("connecting");
  problem = $state<ApiError | null>(null);
  /** While the reader reads, lines that come are kept aside. */
  paused = $state(false);
  waiting = $state.raw<LogLine[]>([]);
  #following: AbortController | null = null;
  /** The server began anew while the reader read: what waits takes the place of what is shown. */
  #begunAnew = false;

  start(choice: Choice): void {
    this.stop();
    this.paused = false;
    this.#begunAnew = false;
    this.lines = [];
    this.waiting = [];
    this.problem = null;
    this.connection = "connecting";
    this.#following = new AbortController();
    void this.#listen(choice, this.#following.signal);
    void this.#readProcesses();
  }

  stop(): void {
    this.#following?.abort();
    this.#following = null;
  }

  pause(on: boolean): void {
    this.paused = on;
    if (on) return;
    this.lines = appended(this.#begunAnew ? [] : this.lines, this.waiting);
    this.#begunAnew = false;
    this.waiting = [];
  }

  async #listen(choice: Choice, signal: AbortSignal): Promise<void> {
    try {
      await follow(`${PATH}/stream${query({ ...choice, lines: FIRST })}`, {
        signal,
        // The server sends the last lines again to each connection.
        onOpen: () => {
          if (this.paused) this.#begunAnew = true;
          else this.lines = [];
          this.waiting = [];
        },
        onDrop: () => (this.connection = "reconnecting"),
        onEvent: ({ event, data }) => {
          if (event === "lines") this.#take(JSON.parse(data) as LogLine[]);
        },
      });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.problem = error;
    }
  }

  #take(fresh: LogLine[]): void {
    this.connection = "live";
    if (fresh.length === 0) return;
    if (this.paused) this.waiting = [...this.waiting, ...fresh].slice(-KEPT);
    else this.lines = appended(this.lines, fresh);
  }

  async #readProcesses(): Promise<void> {
    try {
      const response = await request("GET", `${PATH}?lines=1`);
      this.processes = ((await response.json()) as { processes: LogProcess[] }).processes;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.problem = error;
    }
  }
}
