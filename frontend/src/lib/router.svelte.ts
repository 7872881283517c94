import { href, ownPath } from "./address";
import { type Route, parseRoute } from "./route";

/** Where the reader is, kept in step with the address bar. */
class Router {
  /** As `parseRoute` has it: without the base path. */
  path = $state(ownPath(location.pathname));
  route: Route = $derived(parseRoute(this.path));

  constructor() {
    addEventListener("popstate", () => (this.path = ownPath(location.pathname)));
  }

  /** Go to a path of this page without loading it anew. */
  go(path: string): void {
    if (path !== this.path) history.pushState(null, "", href(path));
    this.path = path;
  }
}

export const router = new Router();

/** For the `onclick` of an `<a href>`: navigate here, but leave new tabs and downloads to the browser. */
export function followLink(event: MouseEvent & { currentTarget: HTMLAnchorElement }): void {
  if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  router.go(ownPath(event.currentTarget.pathname));
}
