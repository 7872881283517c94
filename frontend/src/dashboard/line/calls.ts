import { query, request } from "../../lib/api";
import type { JobClass, Line } from "./line";

export interface Outcome {
  request_id: string;
  node: string;
  note: string;
}

export interface Prompt {
  text: string;
  letters: number;
}

export interface PromptAccess {
  allowed: boolean;
  may_change: boolean;
}

const BASE = "/api/operate/line";
const job = (id: string): string => `${BASE}/jobs/${encodeURIComponent(id)}`;

async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
  const response = await request(method, path, { body });
  return (await response.json()) as T;
}

/** What the server does for this section. */
export const calls = {
  streamPath: `${BASE}/stream`,
  find: (options: { request_id?: string; user?: string; limit?: number }) => call<Line>("GET", BASE + query(options)),
  cancel: (id: string) => call<Outcome>("POST", `${job(id)}/cancel`),
  move: (id: string, before: "class" | "all") => call<Outcome>("POST", `${job(id)}/move`, { before }),
  changeClass: (id: string, job_class: JobClass) => call<Outcome>("POST", `${job(id)}/class`, { job_class }),
  prompt: (id: string) => call<Prompt>("POST", `${job(id)}/prompt`),
  intake: (model: string, paused: boolean, reason: string) => call<unknown>("PUT", `${BASE}/intake`, { model, paused, reason }),
  promptAccess: () => call<PromptAccess>("GET", `${BASE}/prompts`),
  allowPrompts: (allowed: boolean) => call<PromptAccess>("PUT", `${BASE}/prompts`, { allowed }),
};
