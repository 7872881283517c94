import type { Component } from "svelte";
import { ownPath } from "./lib/address";
import { prepareMessageList } from "./chat/messageList";
import { type Room, translation } from "./lib/i18n.svelte";
import { api } from "./lib/api";
import { type Route, parseRoute } from "./lib/route";
import { wasLoggedIn } from "./lib/session.svelte";

interface PageFiles {
  component: () => Promise<{ default: Component }>;
  /** The texts that it and its dialogs show, beside those of the shell. */
  texts: readonly Room[];
}

/** Each page is a chunk of its own: the dashboard does not load the conversations, nor the chat the tree. */
const PAGES: Record<Route["page"], PageFiles> = {
  chat: { component: () => import("./chat/ChatPage.svelte"), texts: ["chat", "sidebar", "start"] },
  tree: { component: () => import("./dashboard/Dashboard.svelte"), texts: ["dashboard"] },
  connect: { component: () => import("./connect/ConnectPage.svelte"), texts: ["connect"] },
  apiDocs: { component: () => import("./apidocs/ApiPage.svelte"), texts: ["apidocs"] },
  shared: { component: () => import("./share/SharePage.svelte"), texts: ["sidebar"] },
  settings: { component: () => import("./settings/SettingsPage.svelte"), texts: ["settings"] },
  welcome: { component: () => import("./settings/WelcomePage.svelte"), texts: ["settings"] },
  usedLink: { component: () => import("./notices/UsedLink.svelte"), texts: [] },
  unknown: { component: () => import("./notices/Unknown.svelte"), texts: [] },
};

/** What an open conversation needs comes beside the page that will ask for it, not after it. */
function prepareConversation(id: string): void {
  if (wasLoggedIn()) api.sendConversationAhead(id);
  prepareMessageList();
}

/** A page and its texts. Rejects when a part of it cannot be loaded. */
export async function loadPage(name: Route["page"]): Promise<Component> {
  const route = parseRoute(ownPath(location.pathname));
  if (name === "chat" && route.page === "chat" && route.conversation !== null) prepareConversation(route.conversation);
  const { component, texts } = PAGES[name];
  const [module] = await Promise.all([component(), translation.need(texts)]);
  return module.default;
}
