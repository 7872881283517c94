import { href } from "./address";

/**
 * Requests that are sent while the code that wants their answers is still loading. Each answer is taken once, and only
 * at the beginning: later it would be old.
 */
const FRESH_MS = 5000;

interface Sent {
  response: Promise<Response>;
  at: number;
}

const sent = new Map<string, Sent>();

/** Send a GET request ahead. */
export function sendAhead(path: string): void {
  const response = fetch(href(path), { headers: { Accept: "application/json" }, credentials: "same-origin" });
  sent.set(path, { response, at: performance.now() });
  response.then(
    (answer) => {
      if (!answer.ok) sent.delete(path); // to be asked again: its reader may have logged in since
    },
    () => {}, // who takes it reports a failure
  );
}

/** The answer to a request that was sent ahead, if there is a fresh one. */
export function takeAhead(path: string): Promise<Response> | null {
  const ahead = sent.get(path);
  sent.delete(path);
  if (!ahead || performance.now() - ahead.at > FRESH_MS) return null;
  return ahead.response;
}
