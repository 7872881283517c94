/** Where the reader is. The server answers `/`, `/c/…` and `/tree/` with the same page. */
export type Route = { page: "chat"; conversation: string | null } | { page: "tree" };

/** The route of a path; unknown paths lead to a new chat. */
export function parseRoute(path: string): Route {
  if (/^\/tree\/?$/.test(path)) return { page: "tree" };
  const match = /^\/c\/([^/]+)\/?$/.exec(path);
  return { page: "chat", conversation: match?.[1] ? decodeURIComponent(match[1]) : null };
}

class Router {
  path = $state(location.pathname);
  route = $derived(parseRoute(this.path));

  constructor() {
    addEventListener("popstate", () => (this.path = location.pathname));
  }

  /** Go to a path of this page without loading it anew. */
  go(path: string): void {
    if (path !== this.path) history.pushState(null, "", path);
    this.path = path;
  }
}

let instance: Router | undefined;

/** The one router, made at first use. */
export function router(): Router {
  return (instance ??= new Router());
}

/** For the `onclick` of an `<a href>`: navigate here, but leave new tabs and downloads to the browser. */
export function followLink(event: MouseEvent & { currentTarget: HTMLAnchorElement }): void {
  if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  router().go(event.currentTarget.pathname);
}
