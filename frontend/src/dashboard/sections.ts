import type { Component } from "svelte";
import type { IconName } from "../lib/Icon.svelte";
import type { TextKey } from "../lib/i18n.svelte";
import type { TreeStore } from "./store.svelte";

/** What every section is given: the one live stream of the dashboard. */
export interface SectionProps {
  store: TreeStore;
}

export interface Section {
  /** Its address below `/tree/`; empty for the first. */
  path: string;
  title: TextKey;
  icon: IconName;
  load: () => Promise<{ default: Component<SectionProps> }>;
  /** A number beside its name in the navigation; 0 shows nothing. */
  count?: (store: TreeStore) => number;
}

/** The dashboard's sections in the order of the navigation; each is a chunk of its own. */
export const SECTIONS: Section[] = [
  { path: "", title: "shell.tree", icon: "tree", load: () => import("./tree/TreeSection.svelte") },
  { path: "line", title: "line.section", icon: "line", load: () => import("./line/LineSection.svelte") },
  { path: "models", title: "models.section", icon: "model", load: () => import("./models/ModelsSection.svelte") },
  { path: "hosts", title: "hosts.section", icon: "host", load: () => import("./hosts/HostsSection.svelte") },
  { path: "history", title: "history.section", icon: "history", load: () => import("./history/HistorySection.svelte") },
  {
    path: "dead",
    title: "dead.section",
    icon: "dead",
    load: () => import("./dead/DeadSection.svelte"),
    count: (store) => store.tree?.summary.total.dead ?? 0,
  },
  { path: "logs", title: "logs.section", icon: "logs", load: () => import("./logs/LogsSection.svelte") },
  { path: "drills", title: "drills.section", icon: "drill", load: () => import("./drills/DrillSection.svelte") },
  { path: "queues", title: "queues.title", icon: "queue", load: () => import("./queues/QueuesSection.svelte") },
  { path: "audit", title: "audit.section", icon: "audit", load: () => import("./audit/AuditSection.svelte") },
];

/** The address of a section. */
export function address(section: Section): string {
  return `/tree/${section.path}`;
}
