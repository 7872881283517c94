/** Whether the page sees the server: what it shows may come from this device's cache. */
class Connection {
  offline = $state(false);
}

export const connection = new Connection();
