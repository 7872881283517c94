/// <reference lib="webworker" />
import { CacheableResponsePlugin } from "workbox-cacheable-response";
import { ExpirationPlugin } from "workbox-expiration";
import { registerRoute } from "workbox-routing";
import { CacheFirst, NetworkFirst } from "workbox-strategies";
import { addBase, named, removeBase } from "../lib/basePath";
import { ASSETS, CACHED_HEADER, CONNECT, CONVERSATIONS, SHELL, isAsset, isConversation, isPage, leavesSession, shellOf } from "./routes";

/**
 * The service worker: without the network, the pages still open and the conversations that were read before can be
 * read again. What the network has always comes first, so that nobody reads an old state while there is a new one.
 */
declare const self: ServiceWorkerGlobalScope;

/** The path below which this worker lies: one build serves every path. */
const BASE = new URL(".", self.location.href).pathname.slice(0, -1);
const href = (path: string): string => addBase(BASE, path);
const own = (pathname: string): string => removeBase(BASE, pathname);
/** Other instances on this host have caches of their own. */
const cacheName = (name: string): string => named(name, BASE);

/** After this time an old copy is better than waiting; the answer of the network still replaces it. */
const PATIENCE_SECONDS = 4;
const DAY = 24 * 3600;

/** Marks what comes from the cache, so that the page can say that it is offline. */
const marked = {
  async cachedResponseWillBeUsed({ cachedResponse }: { cachedResponse?: Response | undefined }): Promise<Response | undefined> {
    if (!cachedResponse) return undefined;
    const headers = new Headers(cachedResponse.headers);
    headers.set(CACHED_HEADER, "1");
    return new Response(await cachedResponse.blob(), { status: cachedResponse.status, headers });
  },
};

// One copy of the document is enough for all pages.
registerRoute(
  ({ request, url }) => request.mode === "navigate" && isPage(own(url.pathname)),
  new NetworkFirst({
    cacheName: cacheName(SHELL),
    networkTimeoutSeconds: PATIENCE_SECONDS,
    plugins: [{ cacheKeyWillBeUsed: async ({ request }) => href(shellOf(own(new URL(request.url).pathname))) }, new CacheableResponsePlugin({ statuses: [200] })],
  }),
);

// Their names change with their content.
registerRoute(
  ({ url }) => isAsset(own(url.pathname)),
  new CacheFirst({ cacheName: cacheName(ASSETS), plugins: [new ExpirationPlugin({ maxEntries: 200, maxAgeSeconds: 60 * DAY })] }),
);

registerRoute(
  ({ request, url }) => request.method === "GET" && isConversation(own(url.pathname)),
  new NetworkFirst({
    cacheName: cacheName(CONVERSATIONS),
    networkTimeoutSeconds: PATIENCE_SECONDS,
    plugins: [
      new CacheableResponsePlugin({ statuses: [200] }),
      new ExpirationPlugin({ maxEntries: 100, maxAgeSeconds: 30 * DAY, purgeOnQuotaError: true }),
      marked,
    ],
  }),
);

// Whoever logs in next must not read what the one before has read.
self.addEventListener("fetch", (event) => {
  if (leavesSession(event.request.method, own(new URL(event.request.url).pathname))) event.waitUntil(caches.delete(cacheName(CONVERSATIONS)));
});

// Who cannot reach this server wants to choose another one, perhaps for the first time.
self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(cacheName(SHELL)).then((cache) => cache.addAll([href("/"), href(CONNECT)])));
  void self.skipWaiting();
});
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

/** What the service sends of an answer (api/push/notifier.py). */
interface PushMessage {
  title: string;
  body: string;
  path: string;
}

// Whoever looks at our pages sees the answer there.
self.addEventListener("push", (event) => {
  const message = event.data?.json() as PushMessage | undefined;
  if (message) event.waitUntil(notifyUnlessVisible(message));
});

async function notifyUnlessVisible({ title, body, path }: PushMessage): Promise<void> {
  const windows = await self.clients.matchAll({ type: "window" });
  if (windows.some((window) => window.visibilityState === "visible")) return;
  await self.registration.showNotification(title, { body, tag: path, icon: href("/static/icons/192.png"), data: { path } });
}

// A notification leads to the conversation that it tells of: in an open window of ours, or in a new one.
self.addEventListener("notificationclick", (event) => {
  event.notification.close();
  const path = String((event.notification.data as { path?: unknown } | null)?.path ?? "/");
  event.waitUntil(open(href(path)));
});

async function open(path: string): Promise<void> {
  const address = new URL(path, self.location.origin);
  if (address.origin !== self.location.origin) return;
  const windows = await self.clients.matchAll({ type: "window" });
  const window = windows[0];
  if (!window) {
    await self.clients.openWindow(address.href);
    return;
  }
  await window.focus();
  window.postMessage({ open: address.pathname });
}
