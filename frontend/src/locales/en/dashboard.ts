import { actions } from "./dashboard-actions";
import { dead } from "./dashboard-dead";
import { drills } from "./dashboard-drills";
import { hosts } from "./dashboard-hosts";
import { history } from "./dashboard-history";
import { logs } from "./dashboard-logs";
import { queues } from "./dashboard-queues";
import { audit } from "./dashboard-audit";
import { line } from "./dashboard-line";
import { models } from "./dashboard-models";
import { shell } from "./dashboard-shell";
import { tree } from "./dashboard-tree";
import { truth } from "./dashboard-truth";

/** The dashboard's texts, one file a section; they come with its page. */
export const dashboard = {
  ...actions,
  ...dead,
  ...history,
  ...drills,
  ...hosts,
  ...logs,
  ...queues,
  ...models,
  ...shell,
  ...line,
  ...audit,
  ...tree,
  ...truth,
};
