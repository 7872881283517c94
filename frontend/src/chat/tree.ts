/**
 * The messages of a conversation as a tree. Pure.
 * They stand in the order in which they were stored, so each comes after its parent.
 */
interface Placed {
  id: string;
  parent: string | null;
  /** The answer that it is compared with. */
  beside?: string | null;
}

/** Two answers to one question, side by side. */
export interface Comparison<T> {
  left: T;
  right: T;
}

/** The branch that ends with `head`, from its beginning on. */
export function branchTo<T extends Placed>(messages: readonly T[], head: string | null): T[] {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const branch: T[] = [];
  let next = head === null ? undefined : byId.get(head);
  while (next) {
    branch.push(next);
    byId.delete(next.id); // what is no tree ends all the same
    next = next.parent === null ? undefined : byId.get(next.parent);
  }
  return branch.reverse();
}

/** All messages that follow the same one, `message` among them: the versions of a question, or of an answer. */
export function versionsOf<T extends Placed>(messages: readonly T[], message: T): T[] {
  return messages.filter((other) => other.parent === message.parent);
}

/** What is compared at the end of a branch, where nothing follows either answer; null: its last message stands alone. */
export function comparisonAt<T extends Placed>(messages: readonly T[], last: T | undefined): Comparison<T> | null {
  const left = last?.beside ? messages.find(({ id }) => id === last.beside) : last;
  const right = messages.findLast(({ beside }) => beside && beside === left?.id);
  if (!left || !right || !isLeaf(messages, left.id) || !isLeaf(messages, right.id)) return null;
  return { left, right };
}

/** The leaf below a message that is reached by the newest message at each fork, but by none that only stands beside another. */
export function newestLeaf(messages: readonly Placed[], id: string): string {
  const newestChild = new Map<string, string>();
  for (const message of messages) {
    if (message.parent !== null && !message.beside) newestChild.set(message.parent, message.id);
  }
  let leaf = id;
  for (let child = newestChild.get(leaf); child !== undefined; child = newestChild.get(leaf)) {
    newestChild.delete(leaf);
    leaf = child;
  }
  return leaf;
}

/** Whether nothing follows the message. */
export function isLeaf(messages: readonly Placed[], id: string): boolean {
  return !messages.some((message) => message.parent === id);
}
