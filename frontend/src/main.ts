import { mount } from "svelte";
import App from "./App.svelte";
import { startTranslation } from "./lib/i18n.svelte";
import { shareDraft } from "./chat/drafts";
import { basePath, href, ownPath } from "./lib/address";
import { sharedText, startServiceWorker } from "./lib/offline";
import { router } from "./lib/router.svelte";
import { startTheme } from "./lib/theme";
import { trackVisibleHeight } from "./lib/viewport";
import "./styles/fonts.css";
import "./styles/tokens.css";
import "./styles/base.css";

const target = document.getElementById("app");
if (!target) throw new Error("index.html lacks #app");
if (!location.pathname.startsWith(`${basePath}/`)) location.replace(href(location.pathname + location.search)); // past the proxy
if (ownPath(location.pathname) === "/share") {
  shareDraft(sharedText(location.search));
  history.replaceState(null, "", href("/"));
  router.go("/");
}
startTheme();
trackVisibleHeight();
void startTranslation().then(() => mount(App, { target }));
startServiceWorker((path) => router.go(path));
