import type { Dictionary } from "../../lib/i18n.svelte";
import { answering } from "./answering";
import { apidocs } from "./apidocs";
import { attachments } from "./attachments";
import { chat } from "./chat";
import { common } from "./common";
import { connect } from "./connect";
import { pages } from "./pages";
import { settings } from "./settings";
import { sidebar } from "./sidebar";
import { start } from "./start";

export const es: Dictionary = { ...common, ...answering, ...attachments, ...apidocs, ...connect, ...chat, ...pages, ...sidebar, ...settings, ...start };
