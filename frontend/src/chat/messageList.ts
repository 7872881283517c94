type Module = typeof import("./MessageList.svelte");

/** The list of messages with all that draws an answer, Markdown above all. The empty chat does without it. */
export function messageList(): Promise<Module> {
  return import("./MessageList.svelte");
}

/** Start loading it, because messages are about to be shown. Who shows them reports a failure. */
export function prepareMessageList(): void {
  messageList().catch(() => {});
}
