import { TextStore } from "../lib/textstore";
import { mine } from "./drafts";

/** With which model a conversation is compared: kept on this device, for all its tabs. */
const models = new TextStore("canopy.compare", { count: 50, characters: 10_000 });

export function secondModelOf(conversation: string | null): string | null {
  models.reload(); // another tab may have chosen
  return models.get(mine(conversation)) || null;
}

export function keepSecondModel(conversation: string | null, model: string | null): void {
  models.set(mine(conversation), model ?? "");
}
