/** The files of Canopy, ChatGPT and Open WebUI, as what Canopy's import takes. Pure. */
import type { Attachment } from "../lib/types";

export interface ImportedMessage {
  id: string;
  parent: string | null;
  role: "user" | "assistant";
  content: string;
  attachments?: Attachment[];
  model?: string | undefined;
  created?: string | number | undefined;
}

export interface ImportedConversation {
  title: string;
  model?: string | undefined;
  created?: string | number | undefined;
  updated?: string | number | undefined;
  pinned?: boolean;
  archived?: boolean;
  folder?: string | undefined;
  head: string | null;
  messages: ImportedMessage[];
}

/** A file that is none of ours. */
export class UnknownFormat extends Error {}

type Json = Record<string, unknown>;

/** A message in a foreign tree; `message` is null for what Canopy does not keep: system texts, tools, empty ones. */
interface Node {
  id: string;
  parent: string | null;
  message: Omit<ImportedMessage, "id" | "parent"> | null;
}

const TITLE_LENGTH = 200;
const NAME_LENGTH = 200;

const isObject = (value: unknown): value is Json => typeof value === "object" && value !== null && !Array.isArray(value);
const text = (value: unknown): string => (typeof value === "string" ? value : "");
const seconds = (value: unknown): number | undefined => (typeof value === "number" && Number.isFinite(value) && value > 0 ? value : undefined);
const entries = (value: unknown): [string, unknown][] => (isObject(value) ? Object.entries(value) : []);
const name = (value: unknown): string | undefined => text(value).slice(0, NAME_LENGTH) || undefined;

/** The conversations of a file. Throws `UnknownFormat`. */
export function conversationsOf(file: unknown): ImportedConversation[] {
  if (isObject(file) && file["format"] === "canopy" && Array.isArray(file["conversations"])) return file["conversations"].filter(isObject).map(fromCanopy);
  const list = Array.isArray(file) ? file.filter(isObject) : [];
  if (list.some((entry) => isObject(entry["mapping"]))) return list.filter((entry) => isObject(entry["mapping"])).map(fromChatGpt);
  if (list.some((entry) => isObject(entry["chat"]))) return list.filter((entry) => isObject(entry["chat"])).map(fromOpenWebUi);
  throw new UnknownFormat();
}

function fromCanopy(entry: Json): ImportedConversation {
  const messages = Array.isArray(entry["messages"]) ? entry["messages"].filter(isObject) : [];
  const nodes = messages.map((message) => ({
    id: String(message["id"]),
    parent: message["parent"] === null || message["parent"] === undefined ? null : String(message["parent"]),
    message: kept(message["role"], text(message["content"]), name(message["model"]), moment(message["created"]), attached(message["attachments"])),
  }));
  const head = entry["head"];
  return {
    ...common(entry["title"], nodes, head === null || head === undefined ? null : String(head)),
    model: name(entry["model"]),
    created: moment(entry["created"]),
    updated: moment(entry["updated"]),
    pinned: entry["pinned"] === true,
    archived: entry["archived"] === true,
    folder: text(entry["folder"]).slice(0, 80),
  };
}

/** ChatGPT's conversations.json: `mapping` is a tree of nodes, most of them with a message. */
function fromChatGpt(entry: Json): ImportedConversation {
  const nodes = entries(entry["mapping"]).map(([id, value]): Node => {
    const node = isObject(value) ? value : {};
    const message = isObject(node["message"]) ? node["message"] : {};
    const author = isObject(message["author"]) ? message["author"] : {};
    const content = isObject(message["content"]) ? message["content"] : {};
    const metadata = isObject(message["metadata"]) ? message["metadata"] : {};
    const hidden = metadata["is_visually_hidden_from_conversation"] === true;
    return {
      id,
      parent: text(node["parent"]) || null,
      message: hidden ? null : kept(author["role"], partsOf(content), name(metadata["model_slug"]), seconds(message["create_time"])),
    };
  });
  return {
    ...common(entry["title"], nodes, text(entry["current_node"]) || null),
    created: seconds(entry["create_time"]),
    updated: seconds(entry["update_time"]),
    archived: entry["is_archived"] === true,
  };
}

/** The text of a message; pictures and other files are left out. */
function partsOf(content: Json): string {
  const parts = Array.isArray(content["parts"]) ? content["parts"] : [content["text"]];
  const texts = parts.map((part) => (isObject(part) ? text(part["text"]) : text(part)));
  return texts.filter((part) => part.trim()).join("\n\n");
}

/** Open WebUI's export: `chat.history.messages` is a tree by ids. */
function fromOpenWebUi(entry: Json): ImportedConversation {
  const chat = isObject(entry["chat"]) ? entry["chat"] : {};
  const history = isObject(chat["history"]) ? chat["history"] : {};
  const nodes = entries(history["messages"]).map(([id, value]): Node => {
    const message = isObject(value) ? value : {};
    return {
      id,
      parent: text(message["parentId"]) || null,
      message: kept(message["role"], text(message["content"]), name(message["model"]), seconds(message["timestamp"])),
    };
  });
  const models = Array.isArray(chat["models"]) ? chat["models"] : [];
  return {
    ...common(chat["title"] ?? entry["title"], nodes, text(history["currentId"]) || null),
    model: name(models[0]),
    created: seconds(entry["created_at"]),
    updated: seconds(entry["updated_at"]),
    pinned: entry["pinned"] === true,
    archived: entry["archived"] === true,
  };
}

/** A time as Canopy writes it; other texts are dropped. */
function moment(value: unknown): string | number | undefined {
  if (typeof value === "number") return seconds(value);
  return typeof value === "string" && !Number.isNaN(Date.parse(value)) ? value : undefined;
}

function kept(
  role: unknown,
  content: string,
  model: string | undefined,
  created: string | number | undefined,
  attachments: Attachment[] = [],
): Node["message"] {
  if ((role !== "user" && role !== "assistant") || (!content.trim() && attachments.length === 0)) return null;
  const files = attachments.length > 0 ? { attachments } : {};
  return { role, content, created, ...(role === "assistant" && model ? { model } : {}), ...files };
}

/** The attachments of a message in our own format; what is none is left out. */
function attached(value: unknown): Attachment[] {
  const list = Array.isArray(value) ? value.filter(isObject) : [];
  const files = list.map((entry) => ({ name: text(entry["name"]).slice(0, NAME_LENGTH).trim(), text: text(entry["text"]) }));
  return files.filter((file) => file.name && file.text.trim());
}

function common(title: unknown, nodes: Node[], current: string | null): Pick<ImportedConversation, "title" | "head" | "messages"> {
  const tree = new Map(nodes.map((node) => [node.id, node]));
  const messages = inOrder(tree);
  const head = nearest(tree, current);
  const oneLine = text(title).replace(/\s+/g, " ").trim() || (messages[0]?.content ?? "").replace(/\s+/g, " ").trim().slice(0, 60);
  return { title: oneLine.slice(0, TITLE_LENGTH) || "–", head, messages };
}

/** The nearest kept message from this one upward; null at the root. Ends also where the file has a circle. */
function nearest(tree: Map<string, Node>, start: string | null): string | null {
  const seen = new Set<string>();
  let id = start;
  while (id !== null && !seen.has(id)) {
    seen.add(id);
    const node = tree.get(id);
    if (!node) return null;
    if (node.message) return id;
    id = node.parent;
  }
  return null;
}

/** The kept messages, each after the one that it follows, siblings in the file's order; circles are left out. */
function inOrder(tree: Map<string, Node>): ImportedMessage[] {
  const children = new Map<string | null, ImportedMessage[]>();
  for (const { id, parent, message } of tree.values()) {
    if (!message) continue;
    const above = nearest(tree, parent);
    children.set(above, [...(children.get(above) ?? []), { id, parent: above, ...message }]);
  }
  const ordered: ImportedMessage[] = [];
  let level = children.get(null) ?? [];
  while (level.length) {
    ordered.push(...level);
    level = level.flatMap((message) => children.get(message.id) ?? []);
  }
  return ordered;
}
