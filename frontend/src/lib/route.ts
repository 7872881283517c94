/** Where the reader is. The server answers `/`, `/c/…` and `/tree/` with the same page. */
export type Route = { page: "chat"; conversation: string | null } | { page: "tree" };

/** The route of a path; unknown paths lead to a new chat. */
export function parseRoute(path: string): Route {
  if (/^\/tree\/?$/.test(path)) return { page: "tree" };
  const match = /^\/c\/([^/]+)\/?$/.exec(path);
  return { page: "chat", conversation: match?.[1] ?? null };
}
