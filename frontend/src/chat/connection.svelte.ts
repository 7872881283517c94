/** A dropped connection that is back within this time, as after a restart of the server, is nobody's business. */
const QUIET_DROP_MS = 5000;

/** Whether the connection over which an answer comes has been down for long enough that its reader should know. */
export class ConnectionState {
  reconnecting = $state(false);
  #drop: ReturnType<typeof setTimeout> | undefined;

  dropped(): void {
    this.#drop ??= setTimeout(() => (this.reconnecting = true), QUIET_DROP_MS);
  }

  /** It works again, or nobody needs it any more. */
  restored(): void {
    clearTimeout(this.#drop);
    this.#drop = undefined;
    this.reconnecting = false;
  }
}
