import { sentence } from "./format";
import type { Conversation, ConversationSummary, Me, Message, Model, User } from "./types";

/** An answer other than success, in words fit for the reader; `status` 0 means that nothing answered. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly field: string | null = null,
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
  return error instanceof Error && error.message ? error.message : "Something went wrong.";
}

/** The value of a cookie in a `document.cookie` string, or an empty string. */
export function cookieValue(cookies: string, name: string): string {
  const pair = cookies.split("; ").find((entry) => entry.startsWith(`${name}=`));
  return pair ? decodeURIComponent(pair.slice(name.length + 1)) : "";
}

/** What a failed response says, whatever shape its body has. */
export async function failure(response: Response): Promise<ApiError> {
  const body: unknown = await response.json().catch(() => null);
  const error = (body as { error?: { message?: unknown; field?: unknown } } | null)?.error;
  const message = typeof error?.message === "string" ? sentence(error.message) : `The server answered with status ${response.status}.`;
  return new ApiError(response.status, message, typeof error?.field === "string" ? error.field : null);
}

/** `fetch` with our headers; throws `ApiError` for everything but success, and reports a lost session. */
export async function request(method: string, path: string, init: { body?: unknown; signal?: AbortSignal } = {}): Promise<Response> {
  const headers: Record<string, string> = { Accept: "application/json" };
  if (method !== "GET") headers["X-CSRFToken"] = cookieValue(document.cookie, "csrftoken");
  if (init.body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method,
    headers,
    credentials: "same-origin",
    body: init.body === undefined ? null : JSON.stringify(init.body),
    signal: init.signal ?? null,
  }).catch((error: unknown) => {
    if (init.signal?.aborted) throw error;
    throw new ApiError(0, "Canopy cannot be reached. Check that it is running, then try again.");
  });
  if (response.ok) return response;
  if (response.status === 401) onUnauthorized();
  throw await failure(response);
}

const IDS = new Set(["id", "seen_from"]);

/** JSON as our types have it: ids are opaque text here, like in addresses, whatever the database makes them. */
export function parse(text: string): unknown {
  return JSON.parse(text, (key, value: unknown) => (IDS.has(key) && typeof value === "number" ? String(value) : value));
}

async function json<T>(method: string, path: string, body?: unknown): Promise<T> {
  return parse(await (await request(method, path, { body })).text()) as T;
}

const conversation = (id: string): string => `/api/conversations/${encodeURIComponent(id)}`;
const node = (name: string): string => `/api/tree/nodes/${encodeURIComponent(name)}`;

export const api = {
  me: () => json<Me>("GET", "/api/me"),
  login: (username: string, password: string) => json<{ user: User }>("POST", "/api/login", { username, password }),
  logout: () => request("POST", "/api/logout"),

  models: () => json<{ models: Model[]; default: string | null }>("GET", "/api/models"),

  conversations: () => json<{ conversations: ConversationSummary[] }>("GET", "/api/conversations"),
  conversation: (id: string) => json<Conversation>("GET", conversation(id)),
  createConversation: (model: string | null) => json<ConversationSummary>("POST", "/api/conversations", model ? { model } : {}),
  updateConversation: (id: string, change: { title?: string; model?: string }) => request("PATCH", conversation(id), { body: change }),
  deleteConversation: (id: string) => request("DELETE", conversation(id)),

  send: (id: string, content: string, model: string | null) =>
    json<{ user_message: Message; assistant_message: Message }>("POST", `${conversation(id)}/messages`, {
      content,
      ...(model ? { model } : {}),
    }),
  stop: (id: string, message: string) => request("POST", `${conversation(id)}/messages/${encodeURIComponent(message)}/stop`),
  streamPath: (id: string, message: string) => `${conversation(id)}/messages/${encodeURIComponent(message)}/stream`,

  treeStreamPath: "/api/tree/stream",
  drain: (name: string) => request("POST", `${node(name)}/drain`),
  resume: (name: string) => request("POST", `${node(name)}/resume`),
};
