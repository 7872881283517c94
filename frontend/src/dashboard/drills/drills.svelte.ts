import { ApiError, query, request } from "../../lib/api";
import { follow } from "../../lib/sse";
import type { Connection } from "../store.svelte";

/** What a drill would hit now. `refusal`: why it cannot begin, in English; empty if it can. */
export interface DrillPlan {
  node: string;
  host: string;
  refusal: string;
  /** Some of them. */
  running: { request_id: string; user: string; seconds: number; tokens: number }[];
  running_count: number;
  waiting: number;
}

/** One drill. Every affected job moved, returned, was lost, was left by its reader, or is open. */
export interface Drill {
  id: number;
  node: string;
  host: string;
  by: string;
  state: "running" | "done" | "failed";
  note: string;
  began: string;
  processes: number;
  affected: number;
  moved: number;
  returned: number;
  lost: number;
  left: number;
  open: number;
  waiting: number;
  /** Seconds from the kill; null: not known. */
  slowest: number | null;
  back: number | null;
}

const PATH = "/api/operate/drills";

/** The latest drills, as long as the section shows them. */
export class DrillsStore {
  drills = $state.raw<Drill[] | null>(null);
  mayStart = $state(false);
  problem = $state<ApiError | null>(null);
  connection = $state<Connection>("connecting");
  #following: AbortController | null = null;

  start(): void {
    this.stop();
    this.problem = null;
    this.connection = "connecting";
    this.#following = new AbortController();
    void this.#listen(this.#following.signal);
  }

  stop(): void {
    this.#following?.abort();
    this.#following = null;
  }

  async plan(node: string): Promise<DrillPlan> {
    return (await (await request("GET", `${PATH}/plan${query({ node })}`)).json()) as DrillPlan;
  }

  /** Kills the node; the list shows how it goes. Throws `ApiError`. */
  async kill(node: string): Promise<void> {
    await request("POST", PATH, { body: { node } });
  }

  async #listen(signal: AbortSignal): Promise<void> {
    try {
      await follow(`${PATH}/stream`, {
        signal,
        onOpen: () => (this.connection = "live"),
        onDrop: () => (this.connection = "reconnecting"),
        onEvent: ({ event, data }) => {
          if (event !== "drills") return;
          const { drills, may_start } = JSON.parse(data) as { drills: Drill[]; may_start: boolean };
          this.drills = drills;
          this.mayStart = may_start;
        },
      });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.connection = "refused";
      this.problem = error;
    }
  }
}
