import { query, request } from "../../lib/api";

export type NodeAction = "drain" | "resume" | "restart" | "remove" | "move";

/** An action to be confirmed. `whole`: with everything below the node. */
export interface Asked {
  action: NodeAction;
  node: string;
  parent?: string;
  whole?: boolean;
}

/** What an action would do now, as the server works it out from the live tree. */
export interface Effect {
  action: NodeAction;
  node: string;
  parent: string | null;
  /** Whom it concerns, the node itself first. */
  nodes: string[];
  /** Nodes that move to the node's parent. */
  children: string[];
  /** Slots of these nodes that get jobs now, and of the whole tree. */
  slots: number;
  all_slots: number;
  running: number;
  held: number;
  waiting: number;
  /** No process of these nodes lives: what the broker keeps of them is deleted. */
  gone: boolean;
}

export interface Outcome {
  /** False: it goes on in the background. */
  done: boolean;
  seconds: number;
}

const path = (node: string): string => `/api/operate/nodes/${encodeURIComponent(node)}`;

/** What the operator is about to do: one dialog, whichever button, menu or gesture asked for it. */
class Operations {
  asked = $state<Asked | null>(null);
  /** The node for which a new parent is being chosen. */
  moving = $state<string | null>(null);

  ask(asked: Asked): void {
    this.moving = null;
    this.asked = asked;
  }

  close(): void {
    this.asked = null;
    this.moving = null;
  }

  async effect({ action, node, parent, whole }: Asked): Promise<Effect> {
    const response = await request("GET", `${path(node)}/effect${query({ action, parent, whole })}`);
    return (await response.json()) as Effect;
  }

  /** Returns when the tree shows that it has happened; throws `ApiError` if it does not. */
  async act({ action, node, parent, whole }: Asked): Promise<Outcome> {
    const body = { action, parent: parent ?? null, whole: whole ?? false };
    return (await (await request("POST", path(node), { body })).json()) as Outcome;
  }
}

export const operations = new Operations();
