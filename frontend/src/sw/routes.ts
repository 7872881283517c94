/** Which requests the service worker answers, and where it keeps the answers. Pure. */

export const SHELL = "canopy-shell";
export const ASSETS = "canopy-assets";
/** Private: emptied when a session begins or ends. */
export const CONVERSATIONS = "canopy-conversations";

/** On a response that was read from a cache. */
export const CACHED_HEADER = "x-canopy-cached";

export const CONNECT = "/connect";

/** The addresses that Django answers with the one page of the app. */
export function isPage(path: string): boolean {
  return path === "/" || path === CONNECT || path === "/settings" || path === "/share" || path.startsWith("/c/");
}

/** Under which address a page is cached: all are one document, but that of CONNECT has a policy of its own. */
export function shellOf(path: string): string {
  return path === CONNECT ? CONNECT : "/";
}

export function isAsset(path: string): boolean {
  return path.startsWith("/static/assets/") || path === "/static/theme.js" || path === "/static/favicon.svg";
}

/** What a reader needs to find and read conversations; never streams, searches or anything that changes. */
export function isConversation(path: string): boolean {
  return /^\/api\/(me|models|conversations(\/\d+)?)$/.test(path);
}

/** Requests after which this browser may belong to somebody else. */
export function leavesSession(method: string, path: string): boolean {
  return path === "/login" || path === "/oidc/callback" || (method === "POST" && (path === "/api/logout" || path === "/api/login"));
}
