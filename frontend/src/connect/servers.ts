/** The servers that this device knows, and whether one answers. */

const STORED = "canopy.servers";
const MOST = 8;
const PATIENCE_MS = 5000;

/** Addresses of our pages: what a server lies below ends where one of them begins. */
const OWN_PAGE = /\/(c|s|tree|settings|connect|welcome|share|login|admin|api)(\/.*)?$/;

/**
 * An address as people type it ("192.168.1.5:8000", "chat.example.org/canopy") as origin and base path; null if it is
 * none.
 */
export function serverOf(text: string): string | null {
  const address = text.trim();
  if (!address || /\s/.test(address) || /^(?!https?:)\w+:\/\//i.test(address)) return null;
  const scheme = /^https?:\/\//i.test(address) ? "" : isLocal(address) ? "http://" : "https://";
  const url = URL.canParse(scheme + address) ? new URL(scheme + address) : null;
  if (!url || !/^https?:$/.test(url.protocol) || !url.hostname) return null;
  return url.origin + url.pathname.replace(OWN_PAGE, "").replace(/\/+$/, "");
}

/** Machines at home and in an office rarely have certificates. */
function isLocal(address: string): boolean {
  const host = address.replace(/[/?#].*$/, "");
  return /:\d+$/.test(host) || /^[\d.]+$/.test(host) || !host.includes(".") || host.endsWith(".local");
}

/** What came of asking a server: `blocked` if a browser lets no secure page ask an insecure address. */
export type Answer = { kind: "canopy"; milliseconds: number } | { kind: "other" } | { kind: "silent" } | { kind: "blocked" };

export async function ask(server: string, page: Location = location): Promise<Answer> {
  if (page.protocol === "https:" && server.startsWith("http:")) return { kind: "blocked" };
  const start = performance.now();
  try {
    const response = await fetch(`${server}/healthz`, { credentials: "omit", signal: AbortSignal.timeout(PATIENCE_MS) });
    const body: unknown = await response.json().catch(() => null);
    const service = (body as { service?: unknown } | null)?.service;
    return service === "canopy" ? { kind: "canopy", milliseconds: Math.round(performance.now() - start) } : { kind: "other" };
  } catch {
    return { kind: "silent" };
  }
}

/** The remembered servers, the latest first. What is stored may be anything: it is checked. */
export function remembered(storage: Pick<Storage, "getItem">): string[] {
  try {
    const stored: unknown = JSON.parse(storage.getItem(STORED) ?? "[]");
    if (!Array.isArray(stored)) return [];
    return stored.filter((entry): entry is string => typeof entry === "string" && serverOf(entry) === entry).slice(0, MOST);
  } catch {
    return [];
  }
}

export function remember(storage: Storage, server: string): void {
  const others = remembered(storage).filter((entry) => entry !== server);
  storage.setItem(STORED, JSON.stringify([server, ...others].slice(0, MOST)));
}

export function forget(storage: Storage, server: string): void {
  storage.setItem(STORED, JSON.stringify(remembered(storage).filter((entry) => entry !== server)));
}
