/** Where the reader is. The server answers all these addresses, and unknown ones, with the same page. */
export type Route =
  | { page: "chat"; conversation: string | null }
  /** The dashboard; `section` is empty for the tree itself. */
  | { page: "tree"; section: string }
  | { page: "connect" }
  | { page: "apiDocs" }
  /** What somebody shares by a link. */
  | { page: "shared"; token: string }
  | { page: "settings" }
  /** Where an account without a password gets one. */
  | { page: "welcome" }
  /** A login link that could not be used: one that could leads elsewhere at once. */
  | { page: "usedLink" }
  | { page: "unknown" };

/** The route of a path. */
export function parseRoute(path: string): Route {
  const dashboard = /^\/tree(?:\/([\w-]*))?$/.exec(path);
  if (dashboard) return { page: "tree", section: dashboard[1] ?? "" };
  if (/^\/connect\/?$/.test(path)) return { page: "connect" };
  if (path === "/api/docs") return { page: "apiDocs" };
  if (/^\/settings\/?$/.test(path)) return { page: "settings" };
  if (/^\/welcome\/?$/.test(path)) return { page: "welcome" };
  if (path === "/login") return { page: "usedLink" };
  if (path === "/" || path === "/share") return { page: "chat", conversation: null };
  const shared = /^\/s\/([\w-]+)$/.exec(path);
  if (shared?.[1]) return { page: "shared", token: shared[1] };
  const match = /^\/c\/([^/]+)\/?$/.exec(path);
  return match?.[1] ? { page: "chat", conversation: match[1] } : { page: "unknown" };
}
