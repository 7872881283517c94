/** Paths below a base path: "" at the root of a host, `/canopy` below a proxy's path. Pure. */

/** The address of one of our paths, such as `/tree/`. */
export function addBase(base: string, path: string): string {
  return base + path;
}

/** Our path for an address of this host; one outside of the base path stays as it is. */
export function removeBase(base: string, pathname: string): string {
  return pathname.startsWith(`${base}/`) ? pathname.slice(base.length) : pathname;
}

/** The name of a cookie or cache that another instance below another path of this host must not share. */
export function named(name: string, base: string): string {
  return name + base.replaceAll("/", "_");
}
