/** The API's values, as they travel (see docs of `/api/docs`). Times are ISO-8601 in UTC. */

export interface User {
  name: string;
  staff: boolean;
  /** False for an account that is reached by login links alone. */
  has_password: boolean;
  /** A directory or a provider checks who this is. */
  known_elsewhere: boolean;
  /** What the end of the account asks for. */
  confirmation: "password" | "name";
}

export interface Me {
  user: User | null;
  default_model: string | null;
  /** Another way to log in; `address` includes the base path. */
  sign_on: { label: string; address: string } | null;
  /** Where the browser goes after logging out, so that the provider's session ends, too. */
  after_logout: string | null;
}

export interface Model {
  id: string;
  /** Whether at least one node serves it now. */
  ready: boolean;
  nodes: number;
  slots: number;
  free: number;
  /** Jobs in line for it. */
  waiting: number;
  /** Tokens of the longest prompt and answer together; null where it is not known. */
  context: number | null;
  /** An operator has paused it: it takes no new messages now. */
  paused: boolean;
  pause_reason: string;
  /** What its operators say of it; may be empty. */
  description: string;
  /** The most tokens of an answer that they allow; null: any number. */
  longest_answer: number | null;
}

export interface ConversationSummary {
  id: string;
  title: string;
  model: string | null;
  updated: string;
  pinned: boolean;
  archived: boolean;
  /** Its name; empty for none. */
  folder: string;
  /** An answer is being written in it. */
  running: boolean;
  /** Not listed, and gone when its reader leaves it. */
  temporary: boolean;
  /** The leaf of the branch that is shown. */
  head: string | null;
}

/** A node on an answer's way through the tree, and how long the request waited there. */
export interface Hop {
  node: string;
  wait_ms: number;
}

export interface Folder {
  name: string;
  count: number;
}

/** A part of the list; `next` is where the following part begins, null at the end. */
export interface ConversationPage {
  conversations: ConversationSummary[];
  next: string | null;
  folders: Folder[];
  archived: number;
}

/** Text on one line; `marks` are the places [start, end] of what was sought. */
export interface Snippet {
  text: string;
  marks: [number, number][];
}

export interface SearchResult {
  conversation: ConversationSummary;
  title: Snippet;
  hits: { message: string; role: "user" | "assistant"; snippet: Snippet }[];
}

export interface SharedLink {
  id: string;
  conversation: string;
  title: string;
  created: string;
}

export interface SharedConversation {
  title: string;
  created: string;
  messages: { role: "user" | "assistant"; content: string; model: string; attachments: Attachment[] }[];
}

export type BulkAction = "delete" | "restore" | "archive" | "unarchive" | "move";

/** A text that belongs to a message. */
export interface Attachment {
  name: string;
  text: string;
}

export type MessageStatus = "done" | "streaming" | "stopped" | "failed";

export interface Message {
  id: string;
  /** The message that it follows; null at the beginning. */
  parent: string | null;
  role: "user" | "assistant" | "system";
  content: string;
  /** Missing in what a former release has said. */
  attachments?: Attachment[];
  /** The answer that it is compared with, until one of them is kept. */
  beside?: string | null;
  status: MessageStatus;
  error: string | null;
  error_code: string;
  created: string;
  finish_reason: string | null;
  /** Of an answer, as far as it is known: who gave it, and how long that took. */
  model: string;
  node: string;
  prompt_tokens: number;
  completion_tokens: number;
  /** Time to first token: from the submission to the first text. */
  ttft_ms: number | null;
  /** From the first text to the end. */
  seconds: number;
  /** How often the answer went on at another node. */
  moved: number;
  trail: Hop[];
}

/** A question and its answer, which has begun. */
export interface Turn {
  user_message: Message;
  assistant_message: Message;
}

export interface Conversation extends ConversationSummary {
  /** Of all branches, in the order of their ids. */
  messages: Message[];
  /** The first message that the model saw when it gave its latest answer; null if it saw all. */
  seen_from: string | null;
  /** Compared with that of the event stream's `ready`, it shows that something was missed. */
  version: string;
  /** The name of the preset that says how answers are wanted here; empty for none. */
  preset?: string;
}

export type NodeState = "starting" | "idle" | "busy" | "draining" | "drained" | "failed" | "lost" | "down";

export interface TreeNode {
  name: string;
  parent: string | null;
  children: string[];
  /** This and the other texts are empty for a node that has not been heard yet. */
  model: string;
  engine: string;
  device: string;
  /** Bytes of the device that the node's process takes, and all that it has; 0: unknown. */
  memory: number;
  memory_total: number;
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
  /** The release that it runs; "" for one that does not say. */
  version: string;
  /** Of its model's weights while it starts, from 0 to 1; null: not known. */
  loaded: number | null;
  /** It has a token of its own: a leaf, below which nothing hangs. */
  joined: boolean;
  policy: string;
  /** Seconds since the node was last heard. */
  seen: number | null;
  /** What an operator should look at while the node serves all the same. */
  warning: string;
  /** Seconds by which its clock is ahead of the server's. */
  clock_difference: number | null;
  /** Runs that ended by a fault of the node, since it started and in the last 15 minutes. */
  failed: number;
  errors: number;
  /** Seconds that the first of the jobs in its hands has waited there. */
  oldest_wait: number;
  /** Means over the last 5 s. */
  tokens_per_second: number;
  jobs_per_second: number;
  /** The state as an operator should see it. */
  shown: ShownState;
  /** The nearest node above that lets no jobs pass. */
  blocked_by: string | null;
  /** The entrance of its tree. */
  root: string | null;
  /** Slots that a job at the entrance could get. */
  usable: number;
}

export type ShownState =
  | "starting"
  | "idle"
  | "busy"
  | "holding"
  | "draining"
  | "drained"
  | "below_draining"
  | "cut_off"
  | "unhealthy"
  | "frozen"
  | "lost"
  | "gone";

/** Sums over the nodes of a tree, or of all. */
export interface TreeSums {
  nodes: number;
  gone: number;
  unhealthy: number;
  waiting: number;
  running: number;
  slots: number;
  usable: number;
  /** Of the usable slots. */
  in_use: number;
  /** Seconds. */
  oldest_wait: number;
  tokens_per_second: number;
  /** Failed runs in the last 15 minutes. */
  errors: number;
  /** `stuck`: jobs wait, and none can start. `empty`: no slot is usable. `gone`: the tree has ended. */
  state: "gone" | "idle" | "working" | "waiting" | "starting" | "empty" | "stuck";
  /** Why no slot is usable. */
  reason: "" | "drained" | "failed" | "gone" | "root_gone" | "no_nodes";
  /** The nodes to blame for that, and those of them that could be resumed. */
  blockers: string[];
  resume: string[];
}

export interface Tree {
  roots: string[];
  nodes: TreeNode[];
  /** `dead`: letters in the queue of dead jobs. */
  summary: { total: TreeSums & { dead: number }; trees: (TreeSums & { root: string; model: string })[] };
  at: string;
}

/** What is different from the former tree. */
export interface TreePatch {
  at: string;
  nodes?: Record<string, Partial<TreeNode>>;
  /** The names of all nodes, if these changed. */
  order?: string[];
  roots?: string[];
  summary?: Tree["summary"];
}

/** The sums of one moment of the last 15 minutes. */
export type TrendSample = Pick<TreeSums, "waiting" | "running" | "usable" | "in_use" | "oldest_wait" | "tokens_per_second" | "errors"> & { at: string };
