import type { connect as english } from "../en/connect";

export const connect: Record<keyof typeof english, string> = {
  "connect.title": "Conectar con un servidor",
  "connect.address": "Dirección de un servidor Canopy",
  "connect.open": "Abrir",
  "connect.noAddress": "Esto no es una dirección. Pruebe 192.168.1.20:8000 o chat.example.org.",
  "connect.asking": "Consultando al servidor…",
  "connect.answers": "Canopy responde ahí, en {ms} ms.",
  "connect.other": "Ahí responde algo, pero no es Canopy.",
  "connect.silent": "Ahí no responde nada. Compruebe la dirección, y que el servidor funcione y sea accesible desde esta red.",
  "connect.blocked": "Los navegadores no permiten que una página segura consulte una dirección sin https. Ábrala para ver.",
  "connect.known": "Servidores usados antes",
  "connect.forget": "Olvidar {server}",
};
