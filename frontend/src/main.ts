import { mount } from "svelte";
import App from "./App.svelte";
import { startTranslation } from "./lib/i18n.svelte";
import { shareDraft } from "./chat/drafts";
import { sharedText, startServiceWorker } from "./lib/offline";
import { router } from "./lib/router.svelte";
import { startTheme } from "./lib/theme";
import { trackVisibleHeight } from "./lib/viewport";
import "./styles/fonts.css";
import "./styles/tokens.css";
import "./styles/base.css";

const target = document.getElementById("app");
if (!target) throw new Error("index.html lacks #app");
if (location.pathname === "/share") {
  shareDraft(sharedText(location.search));
  history.replaceState(null, "", "/");
  router.go("/");
}
startTheme();
trackVisibleHeight();
void startTranslation().then(() => mount(App, { target }));
startServiceWorker((path) => router.go(path));
