import { ApiError, request } from "../../lib/api";
import { follow } from "../../lib/sse";

export interface HostNode {
  name: string;
  state: "preparing" | "starting" | "running" | "restarting" | "leaving" | "removed" | "failed";
  pid: number;
  model: string;
  parent: string;
  /** What it does while it starts, or why it failed; `tail`: its last lines then. */
  note: string;
  tail: string[];
}

/** A machine with an agent; amounts are bytes. */
export interface Host {
  name: string;
  host: string;
  cpus: number;
  memory: number;
  memory_free: number;
  engine: string;
  max_nodes: number;
  devices: { name: string; memory: number; memory_free: number }[];
  /** What may be started there; `bytes` of the weights, 0 while that is not known. */
  models: { name: string; bytes: number }[];
  nodes: HostNode[];
  drills: boolean;
}

export interface NewNode {
  model: string;
  parent: string | null;
  slots: number | null;
  device: string;
}

const PATH = "/api/operate/hosts";

/** The hosts, as long as a section shows them. */
export class HostsStore {
  hosts = $state.raw<Host[] | null>(null);
  problem = $state<ApiError | null>(null);
  #following: AbortController | null = null;

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

  /** The name of the node that the host is about to start; throws `ApiError`. */
  async startNode(host: string, node: NewNode): Promise<string> {
    const response = await request("POST", `${PATH}/${encodeURIComponent(host)}/nodes`, { body: node });
    return ((await response.json()) as { node: string }).node;
  }

  async stopNode(host: string, node: string): Promise<void> {
    await request("DELETE", `${PATH}/${encodeURIComponent(host)}/nodes/${encodeURIComponent(node)}`);
  }

  async #listen(signal: AbortSignal): Promise<void> {
    try {
      await follow(`${PATH}/stream`, {
        signal,
        onEvent: ({ event, data }) => {
          if (event === "hosts") this.hosts = (JSON.parse(data) as { hosts: Host[] }).hosts;
        },
      });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.problem = error;
    }
  }
}

/** Gigabytes with one digit. Pure. */
export function gigabytes(bytes: number): string {
  return (bytes / 1e9).toFixed(1);
}
