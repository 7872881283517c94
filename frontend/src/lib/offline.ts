import { href, ownPath } from "./address";
import { api } from "./api";

/** The installed app: the service worker, notifications of long answers, and texts that other apps share with us. */

/** Register the service worker; where browsers have none, the pages work as before. */
export function startServiceWorker(openPath: (path: string) => void): void {
  if (!("serviceWorker" in navigator) || !import.meta.env.PROD) return;
  navigator.serviceWorker.register(href("/sw.js")).catch((error: unknown) => console.warn("no service worker:", error));
  navigator.serviceWorker.addEventListener("message", ({ data }: MessageEvent<{ open?: unknown }>) => {
    if (typeof data.open === "string") openPath(ownPath(data.open));
  });
}

const LONGEST_SHARED = 20_000;

/** The text of a share (title, text and address, each at most once), from the address `/share?…`. */
export function sharedText(search: string): string {
  const parameters = new URLSearchParams(search);
  const parts = ["title", "text", "url"].map((name) => parameters.get(name)?.trim() ?? "");
  const different = parts.filter((part, index) => part !== "" && !parts.some((other, at) => at > index && other.includes(part)));
  return different.join("\n").slice(0, LONGEST_SHARED);
}

/** Whether this browser may tell of long answers: `impossible` where it has no means, `denied` where its reader said no. */
export type NotificationState = "impossible" | "off" | "on" | "denied";

/** `push`: the service sends them, also while the pages are closed; else only an open page can tell. */
export async function notificationState(push: boolean): Promise<NotificationState> {
  if (!("Notification" in window) || !("serviceWorker" in navigator)) return "impossible";
  if (Notification.permission === "denied") return "denied";
  if (!push) return Notification.permission === "granted" ? "on" : "off";
  if (!("PushManager" in window)) return "impossible";
  const registration = await navigator.serviceWorker.getRegistration();
  return (await registration?.pushManager.getSubscription()) ? "on" : "off";
}

/** Ask the reader, subscribe at the browser's push service, and tell the server. Throws what goes wrong. */
export async function startPush(key: string): Promise<NotificationState> {
  if (!(await askForNotifications())) return "denied";
  const registration = await navigator.serviceWorker.ready;
  const subscription = await registration.pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: key });
  await api.subscribe(subscription.toJSON());
  return "on";
}

export async function stopPush(): Promise<NotificationState> {
  const registration = await navigator.serviceWorker.ready;
  const subscription = await registration.pushManager.getSubscription();
  if (subscription) {
    await api.unsubscribe(subscription.endpoint);
    await subscription.unsubscribe();
  }
  return "off";
}

export async function askForNotifications(): Promise<boolean> {
  return (await Notification.requestPermission()) === "granted";
}

/** Tell a reader who looks elsewhere of an answer that took long. Without permission, nothing happens. */
export async function notify(title: string, body: string, path: string): Promise<void> {
  if (!document.hidden || !("Notification" in window) || Notification.permission !== "granted") return;
  const registration = await navigator.serviceWorker?.getRegistration();
  await registration?.showNotification(title, { body, tag: path, icon: href("/static/icons/192.png"), data: { path } });
}
