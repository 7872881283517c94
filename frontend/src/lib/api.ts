import { csrfCookie, href } from "./address";
import { CACHED_HEADER } from "../sw/routes";
import { sendAhead, takeAhead } from "./ahead";
import { connection } from "./connection.svelte";
import { errorSentence } from "./errors";
import { sentence } from "./format";
import { t, type Values } from "./i18n.svelte";
import type {
  Attachment,
  BulkAction,
  Conversation,
  ConversationPage,
  ConversationSummary,
  Me,
  Model,
  SearchResult,
  SharedConversation,
  SharedLink,
  Turn,
  User,
} from "./types";

/** An answer other than success, in words fit for the reader; `status` 0 means that nothing answered. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly field: string | null = null,
    /** The kind of error, for what the page does about it. */
    readonly code: string | null = null,
  ) {
    super(message);
    this.name = "ApiError";
  }
}

let onUnauthorized = (): void => {};

/** Say what happens when the session turns out to be over (any 401). */
export function whenUnauthorized(handler: () => void): void {
  onUnauthorized = handler;
}

/** One clear line for any thrown value. */
export function errorText(error: unknown): string {
  if (error instanceof ApiError) return error.message;
  return error instanceof Error && error.message ? error.message : t("common.wrong");
}

/** The value of a cookie in a `document.cookie` string, or an empty string. */
export function cookieValue(cookies: string, name: string): string {
  const pair = cookies.split("; ").find((entry) => entry.startsWith(`${name}=`));
  return pair ? decodeURIComponent(pair.slice(name.length + 1)) : "";
}

interface ErrorBody {
  error?: { message?: unknown; field?: unknown; code?: unknown; params?: Values };
}

/** What a failed response says, in the reader's language, whatever shape its body has. */
export async function failure(response: Response): Promise<ApiError> {
  const body = (await response.json().catch(() => null)) as ErrorBody | null;
  const error = body?.error;
  const text = (value: unknown): string | null => (typeof value === "string" ? value : null);
  const reason = text(error?.message);
  const { status } = response;
  const message =
    reason === null
      ? await errorSentence("status", { status }, `${status}`)
      : await errorSentence(text(error?.code) ?? "", error?.params ?? {}, sentence(reason));
  return new ApiError(status, message, text(error?.field), text(error?.code));
}

/** `fetch` with our headers; throws `ApiError` for everything but success, and reports a lost session. */
export async function request(method: string, path: string, init: { body?: unknown; signal?: AbortSignal } = {}): Promise<Response> {
  const headers: Record<string, string> = { Accept: "application/json" };
  if (method !== "GET") headers["X-CSRFToken"] = cookieValue(document.cookie, csrfCookie);
  if (init.body !== undefined) headers["Content-Type"] = "application/json";
  const ahead = method === "GET" ? takeAhead(path) : null;
  const sent = ahead ?? fetch(href(path), {
    method,
    headers,
    credentials: "same-origin",
    body: init.body === undefined ? null : JSON.stringify(init.body),
    signal: init.signal ?? null,
    // A small change must arrive although the page is left at that moment.
    keepalive: method === "PATCH",
  });
  const response = await sent.catch((error: unknown) => {
    if (init.signal?.aborted) throw error;
    throw new ApiError(0, t("common.unreachable"));
  });
  connection.offline = response.headers.has(CACHED_HEADER);
  if (response.ok) return response;
  if (response.status === 401) onUnauthorized();
  throw await failure(response);
}

const IDS = new Set(["id", "parent", "head", "seen_from", "conversation", "message", "beside"]);

/** JSON as our types have it: ids are opaque text here, like in addresses, whatever the database makes them. */
export function parse(text: string): unknown {
  return JSON.parse(text, (key, value: unknown) => (IDS.has(key) && typeof value === "number" ? String(value) : value));
}

/** The server's ids are numbers. */
function withRowIds<T extends { parent?: string | null; head?: string | null }>(body: T): object {
  const number = (id: string | null): number | null => (id === null ? null : Number(id));
  return {
    ...body,
    ...(body.parent === undefined ? {} : { parent: number(body.parent) }),
    ...(body.head === undefined ? {} : { head: number(body.head) }),
  };
}

async function json<T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
  return parse(await (await request(method, path, signal ? { body, signal } : { body })).text()) as T;
}

const conversation = (id: string): string => `/api/conversations/${encodeURIComponent(id)}`;

export interface ListOptions {
  folder?: string | undefined;
  archived?: boolean | undefined;
  cursor?: string | undefined;
  limit?: number | undefined;
  /** The page goes on to this conversation. */
  through?: string | undefined;
}

export interface ConversationChange {
  title?: string;
  model?: string;
  pinned?: boolean;
  archived?: boolean;
  folder?: string;
  /** A message of the branch to be shown. */
  head?: string;
}

/** A message of the user; `model`: without it, the conversation's. */
export interface Written {
  content: string;
  attachments: Attachment[];
  model?: string;
}

/** The query of an address, without what is undefined. */
export function query(options: object): string {
  const fields = Object.entries(options).filter(([, value]) => value !== undefined && value !== null);
  const text = new URLSearchParams(fields.map(([name, value]) => [name, String(value)])).toString();
  return text && `?${text}`;
}

export const api = {
  me: () => json<Me>("GET", "/api/me"),
  login: (username: string, password: string) => json<{ user: User }>("POST", "/api/login", { username, password }),
  pushKey: async () => (await json<{ key: string | null }>("GET", "/api/push")).key,
  subscribe: (subscription: PushSubscriptionJSON) => request("POST", "/api/push/subscriptions", { body: subscription }),
  unsubscribe: (endpoint: string) => request("POST", "/api/push/subscriptions/remove", { body: { endpoint } }),
  logout: () => request("POST", "/api/logout"),

  models: () => json<{ models: Model[]; default: string | null }>("GET", "/api/models"),

  conversations: (options: ListOptions) => json<ConversationPage>("GET", `/api/conversations${query(options)}`),
  conversation: (id: string) => json<Conversation>("GET", conversation(id)),
  /** `conversation` is about to be called. */
  sendConversationAhead: (id: string) => sendAhead(conversation(id)),
  createConversation: (first: Written & { temporary: boolean; preset: number | null }) => json<Conversation>("POST", "/api/conversations", first),
  updateConversation: (id: string, change: ConversationChange) =>
    json<ConversationSummary & { seen_from: string | null }>("PATCH", conversation(id), withRowIds(change)),
  deleteConversation: (id: string) => request("DELETE", conversation(id)),
  bulk: (action: BulkAction, ids: string[], folder = "") =>
    json<{ count: number }>("POST", "/api/conversations/bulk", { action, ids: ids.map(Number), folder }),

  search: (q: string, signal: AbortSignal) => json<{ results: SearchResult[] }>("GET", `/api/conversations/search${query({ q })}`, undefined, signal),
  importConversations: (list: unknown[]) =>
    json<{ conversations: number; messages: number; known: number }>("POST", "/api/conversations/import", { conversations: list }),

  shares: () => json<{ shares: SharedLink[] }>("GET", "/api/shares"),
  share: (id: string) => json<SharedLink & { path: string }>("POST", `${conversation(id)}/shares`),
  revokeShare: (id: string) => request("DELETE", `/api/shares/${encodeURIComponent(id)}`),
  shared: (token: string) => json<SharedConversation>("GET", `/api/shared/${encodeURIComponent(token)}`),

  /** `parent` given: a new branch below that message. `head`: the leaf that the sender saw. */
  send: (id: string, body: Written & { parent?: string | null; head?: string | null }) =>
    json<Turn>("POST", `${conversation(id)}/messages`, withRowIds(body)),
  /** `beside`: to be compared with this answer, which stays the one that is shown. */
  regenerate: (id: string, message: string, model: string | null, beside: boolean) =>
    json<Turn>("POST", `${conversation(id)}/messages/${encodeURIComponent(message)}/regenerate`, { model, beside }),
  continueAnswer: (id: string, message: string) => json<Turn>("POST", `${conversation(id)}/messages/${encodeURIComponent(message)}/continue`),
  stop: (id: string, message: string) => request("POST", `${conversation(id)}/messages/${encodeURIComponent(message)}/stop`),

  treeStreamPath: "/api/tree/stream?patches=true",
};
