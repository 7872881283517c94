import { t, tn } from "../../lib/i18n.svelte";
import type { Effect } from "./operations.svelte";

/** What an action does, a sentence a line. Pure. */
export function sentences(effect: Effect): string[] {
  if (effect.gone) return ended(effect);
  const lines = [whom(effect), ...jobs(effect)];
  if (effect.children.length) lines.push(t("actions.children", { names: effect.children.join(", "), parent: effect.parent ?? "" }));
  if (takesSlots(effect)) {
    lines.push(t("actions.slots", { slots: effect.slots, all: effect.all_slots }));
    if (effect.slots === effect.all_slots) lines.push(t("actions.noneLeft"));
  }
  return lines;
}

function ended({ node, nodes, held }: Effect): string[] {
  return [tn("actions.removeGone", nodes.length, { node }), held ? tn("actions.endJobs", held) : t("actions.endNone")];
}

function takesSlots({ action, slots }: Effect): boolean {
  return slots > 0 && action !== "resume" && action !== "move";
}

function whom({ action, node, nodes, parent }: Effect): string {
  const below = nodes.length - 1;
  if (action === "move") return t("actions.move.text", { node, parent: parent ?? "", count: below });
  if (action === "restart") return below ? tn("actions.restartAll.text", nodes.length, { node }) : t("actions.restart.text", { node });
  if (action === "remove") return t("actions.remove.text", { node });
  const key = action === "drain" ? "actions.drain.text" : "actions.resume.text";
  return below ? tn(`${key}Below`, below, { node }) : t(key, { node });
}

function jobs({ action, running, held, waiting }: Effect): string[] {
  if (action === "resume") return waiting ? [tn("actions.waitingGo", waiting)] : [];
  if (action === "move") return [t("actions.move.jobs", { running, held })];
  const lines: string[] = [];
  if (running) lines.push(tn(action === "drain" ? "actions.finish" : "actions.handOver", running));
  if (waiting) lines.push(tn("actions.waitingStay", waiting));
  return lines;
}
