export const connect = {
  "connect.title": "Connect to a server",
  "connect.address": "Address of a Canopy server",
  "connect.open": "Open",
  "connect.noAddress": "This is not an address. Try 192.168.1.20:8000 or chat.example.org.",
  "connect.asking": "Asking the server…",
  "connect.answers": "Canopy answers there, in {ms} ms.",
  "connect.other": "Something answers there, but it is not Canopy.",
  "connect.silent": "Nothing answers there. Check the address, and that the server is running and reachable from this network.",
  "connect.blocked": "Browsers do not let a secure page ask an address without https. Open it to see.",
  "connect.known": "Servers used before",
  "connect.forget": "Forget {server}",
};
