import { ApiError, request } from "./api";

/** One server-sent event; `data` is the text of its data lines. */
export interface ServerEvent {
  event: string;
  data: string;
}

/** Turns text chunks, cut anywhere, into whole events (comments and unknown fields are dropped). */
export class EventParser {
  #rest = "";
  #event = "";
  #data: string[] = [];

  push(chunk: string): ServerEvent[] {
    const lines = (this.#rest + chunk).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop() ?? "";
    return lines.flatMap((line) => this.#line(line));
  }

  #line(line: string): ServerEvent[] {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.#event = value;
    if (field === "data") this.#data.push(value);
    return [];
  }

  #dispatch(): ServerEvent[] {
    const event = { event: this.#event || "message", data: this.#data.join("\n") };
    const empty = this.#data.length === 0;
    this.#event = "";
    this.#data = [];
    return empty ? [] : [event];
  }
}

export interface FollowOptions {
  signal: AbortSignal;
  /** A connection that is silent for so long is dead. */
  silenceMs?: number;
  /** A connection stands: what follows starts from the beginning again. */
  onOpen?: () => void;
  /** The connection broke; another attempt follows. */
  onDrop?: () => void;
  /** Return `false` when this was the last event of interest. */
  onEvent: (event: ServerEvent) => boolean | void;
}

const FIRST_DELAY_MS = 400;
const LONGEST_DELAY_MS = 5000;
/** The server sends something at least every 15 s; longer silence means the connection is dead. */
const SILENCE_MS = 45_000;

/** How long to wait before attempt number `attempt` (from 1), in milliseconds. */
export function retryDelay(attempt: number): number {
  return Math.min(FIRST_DELAY_MS * 2 ** (attempt - 1), LONGEST_DELAY_MS);
}

/**
 * Follow an event stream, reconnecting when it drops, until `onEvent` returns false or `signal` aborts.
 * Throws `ApiError` when the server refuses for good (any 4xx): EventSource would hide that, hence `fetch`.
 */
export async function follow(path: string, options: FollowOptions): Promise<void> {
  for (let attempt = 1; !options.signal.aborted; attempt++) {
    try {
      const heard = await readOnce(path, options);
      if (heard === "finished") return;
      if (heard === "some") attempt = 0;
    } catch (error) {
      if (options.signal.aborted) return;
      if (error instanceof ApiError && error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
    }
    options.onDrop?.();
    await pause(retryDelay(Math.max(attempt, 1)), options.signal);
  }
}

async function readOnce(path: string, options: FollowOptions): Promise<"finished" | "some" | "nothing"> {
  const attempt = new AbortController();
  const silence = watchdog(() => attempt.abort(), options.silenceMs ?? SILENCE_MS);
  try {
    const response = await request("GET", path, { signal: AbortSignal.any([options.signal, attempt.signal]) });
    if (!response.body) return "nothing";
    options.onOpen?.();
    return await readEvents(response.body.pipeThrough(new TextDecoderStream()).getReader(), options, silence.reset);
  } finally {
    silence.stop();
    attempt.abort();
  }
}

async function readEvents(reader: ReadableStreamDefaultReader<string>, options: FollowOptions, heardSomething: () => void) {
  const parser = new EventParser();
  let heard: "some" | "nothing" = "nothing";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return heard;
    heardSomething();
    for (const event of parser.push(value)) {
      heard = "some";
      if (options.onEvent(event) === false) return "finished";
    }
  }
}

function watchdog(action: () => void, ms: number): { reset: () => void; stop: () => void } {
  let timer = setTimeout(action, ms);
  const stop = (): void => clearTimeout(timer);
  return {
    stop,
    reset: () => {
      stop();
      timer = setTimeout(action, ms);
    },
  };
}

/** Wait, but not past an abort, and not past the moment the device is online again. */
function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const finish = (): void => {
      clearTimeout(timer);
      signal.removeEventListener("abort", finish);
      removeEventListener("online", finish);
      resolve();
    };
    const timer = setTimeout(finish, ms);
    signal.addEventListener("abort", finish);
    addEventListener("online", finish);
  });
}
