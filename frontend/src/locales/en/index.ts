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

/** Every text of the pages, one file a room. A key is `room.what`; `what#other` is the plural. */
export const en = { ...common, ...answering, ...attachments, ...apidocs, ...connect, ...chat, ...pages, ...sidebar, ...settings, ...start };
