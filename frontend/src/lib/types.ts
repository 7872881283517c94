/** The API's values, as they travel (see docs of `/api/docs`). Times are ISO-8601 in UTC. */

export interface User {
  name: string;
  staff: boolean;
}

export interface Me {
  user: User | null;
  default_model: string | null;
}

export interface Model {
  id: string;
  /** Whether at least one node serves it now. */
  ready: boolean;
  nodes: number;
  slots: number;
  free: number;
}

export interface ConversationSummary {
  id: string;
  title: string;
  model: string | null;
  updated: string;
}

export type MessageStatus = "done" | "streaming" | "stopped" | "failed";

export interface Message {
  id: string;
  role: "user" | "assistant" | "system";
  content: string;
  status: MessageStatus;
  error: string | null;
  created: string;
  finish_reason: string | null;
}

export interface Conversation extends ConversationSummary {
  messages: Message[];
  /** The first message that the model saw when it gave its latest answer; null if it saw all. */
  seen_from: string | null;
}

export type NodeState = "starting" | "idle" | "busy" | "draining" | "drained" | "failed" | "down";

export interface TreeNode {
  name: string;
  parent: string | null;
  children: string[];
  /** This and the other texts are empty for a node that has not been heard yet. */
  model: string;
  engine: string;
  device: string;
  state: NodeState;
  slots: number;
  running: number;
  /** Jobs waiting at this node: held by it, plus those still in its broker queue. */
  queued: number;
  held: number;
  depth: number;
  received: number;
  finished: number;
  tokens: number;
  host: string;
  pid: number;
  /** Seconds, over the latest jobs that had to wait at this node: how long, and how wrong the first estimate was (means). */
  waited: number;
  wait_error: number;
  /** Tokens of the prompts since the engine started, and how many of them were held already. */
  prompt_tokens: number;
  reused_tokens: number;
  /** Seconds since the node started. */
  uptime: number | null;
  detail: string;
  policy: string;
  /** Seconds since the node was last heard. */
  seen: number | null;
  /** What an operator should look at while the node serves all the same. */
  warning: string;
  /** Seconds by which its clock is ahead of the server's. */
  clock_difference: number | null;
}

export interface Tree {
  roots: string[];
  nodes: TreeNode[];
  at: string;
}
