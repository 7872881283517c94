import { conversations } from "../chat/conversations.svelte";
import { t } from "../lib/i18n.svelte";
import type { ConversationSummary } from "../lib/types";
import { panels } from "./panels.svelte";
import type { MenuEntry } from "./Menu.svelte";

interface Handlers {
  rename: (conversation: ConversationSummary) => void;
  move: (conversation: ConversationSummary) => void;
  remove: (conversation: ConversationSummary) => void;
}

/** What can be done with one conversation. */
export function actionsFor(handlers: Handlers): (conversation: ConversationSummary) => MenuEntry[] {
  return (conversation) => {
    const { id, pinned, archived } = conversation;
    return [
      { id: "rename", label: t("sidebar.rename"), icon: "pencil", run: () => handlers.rename(conversation) },
      {
        id: "pin",
        label: t(pinned ? "sidebar.unpin" : "sidebar.pin"),
        icon: "pin",
        run: () => void conversations.change(id, { pinned: !pinned }),
      },
      { id: "move", label: t("sidebar.move"), icon: "folder", run: () => handlers.move(conversation) },
      { id: "share", label: t("sidebar.share"), icon: "link", run: () => panels.open({ name: "share", conversation: id }) },
      { id: "export", label: t("sidebar.export"), icon: "download", run: () => panels.open({ name: "export", conversation: id }) },
      { id: "select", label: t("sidebar.select"), icon: "check", run: () => select(id) },
      {
        id: "archive",
        label: t(archived ? "sidebar.unarchive" : "sidebar.archive"),
        icon: "archive",
        run: () => void conversations.change(id, { archived: !archived }),
      },
      { id: "delete", label: t("sidebar.delete"), icon: "trash", danger: true, run: () => handlers.remove(conversation) },
    ];
  };
}

function select(id: string): void {
  conversations.selecting = true;
  conversations.selected.add(id);
}
