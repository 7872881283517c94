import { parse, request } from "../lib/api";
import type { User } from "../lib/types";
import type { Family } from "./scopes";

/** How answers are wanted; null is the service's own default. */
export interface Style {
  instructions: string;
  temperature: number | null;
  top_p: number | null;
  max_tokens: number | null;
}

export interface Preset extends Style {
  id: string;
  name: string;
}

export interface ApiKey {
  id: string;
  /** The public part, by which a key is recognised. */
  name: string;
  label: string;
  created: string;
  last_used: string | null;
  expires: string | null;
  /** Empty: all. */
  models: string[];
  endpoints: Family[];
}

/** A key to be made; see ApiKey. */
export type NewKey = Pick<ApiKey, "label" | "expires" | "models" | "endpoints">;

export interface Login {
  id: string;
  /** The browser's User-Agent header. */
  browser: string;
  created: string;
  last_used: string;
  current: boolean;
}

export interface DailyUse {
  day: string;
  model: string;
  requests: number;
  prompt_tokens: number;
  completion_tokens: number;
}

async function json<T>(method: string, path: string, body?: unknown): Promise<T> {
  return parse(await (await request(method, path, { body })).text()) as T;
}

const one = (room: string, id: string): string => `${room}/${encodeURIComponent(id)}`;
const styleOf = (conversation: string | null): string =>
  conversation === null ? "/api/preferences" : `${one("/api/conversations", conversation)}/preferences`;

export const account = {
  start: (name: string, password: string) => json<User>("POST", "/api/account/start", { name, password }),
  changePassword: (current: string, next: string, revoke_keys: boolean) =>
    request("POST", "/api/account/password", { body: { current, new: next, revoke_keys } }),
  delete: (confirmed: { password: string } | { name: string }) => request("POST", "/api/account/delete", { body: confirmed }),

  keys: async () => (await json<{ keys: ApiKey[] }>("GET", "/api/account/keys")).keys,
  createKey: (key: NewKey) => json<ApiKey & { key: string }>("POST", "/api/account/keys", key),
  revokeKey: (id: string) => request("DELETE", one("/api/account/keys", id)),

  sessions: async () => (await json<{ sessions: Login[] }>("GET", "/api/account/sessions")).sessions,
  endSession: (id: string) => request("DELETE", one("/api/account/sessions", id)),
  endOtherSessions: () => request("POST", "/api/account/sessions/end-others"),

  usage: async (days: number) => (await json<{ use: DailyUse[] }>("GET", `/api/account/usage?days=${days}`)).use,

  /** The user's own, or a conversation's. */
  style: (conversation: string | null) => json<Style>("GET", styleOf(conversation)),
  setStyle: (conversation: string | null, style: Style) => json<Style>("PUT", styleOf(conversation), style),
  presets: async () => (await json<{ presets: Preset[] }>("GET", "/api/presets")).presets,
  addPreset: (name: string, style: Style) => json<Preset>("POST", "/api/presets", { name, ...style }),
  /** Make it the conversation's own style; null: none any more. Returns its name. */
  applyPreset: async (conversation: string, preset: string | null) =>
    (await json<{ preset: string }>("PUT", `${one("/api/conversations", conversation)}/preset`, { preset: preset && Number(preset) })).preset,
  removePreset: (id: string) => request("DELETE", one("/api/presets", id)),
};
