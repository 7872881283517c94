import { errorText } from "../lib/api";
import { toasts } from "../lib/toasts.svelte";
import { account, type Preset } from "../settings/account";
import type { ChatStore } from "../chat/store.svelte";

/** Answer as this preset says from now on, in the open conversation or in the one that begins next; null: as everywhere. */
export async function applyPreset(store: ChatStore, preset: Preset | null): Promise<void> {
  const conversation = store.chat.current;
  if (!conversation) {
    store.nextPreset = preset;
    return;
  }
  try {
    conversation.preset = await account.applyPreset(conversation.id, preset?.id ?? null);
  } catch (error) {
    toasts.show(errorText(error));
  }
}
