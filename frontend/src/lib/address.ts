import { addBase, named, removeBase } from "./basePath";

/** Where the pages lie on their host. The server writes it into the page (api/http/pages.py): one build serves every path. */
export const basePath: string =
  typeof document === "undefined" ? "" : (document.querySelector<HTMLMetaElement>('meta[name="base-path"]')?.content ?? "");

/** The address of one of our paths, such as `/tree/`, for links and requests. */
export function href(path: string): string {
  return addBase(basePath, path);
}

/** Our path for an address of this host, as `parseRoute` has it. */
export function ownPath(pathname: string): string {
  return removeBase(basePath, pathname);
}

/** The cookie whose value is sent with changes (CSRF_COOKIE_NAME in api/settings.py). */
export const csrfCookie: string = named("csrftoken", basePath);
