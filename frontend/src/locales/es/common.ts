import type { common as english } from "../en/common";

export const common: Record<keyof typeof english, string> = {
  "common.retry": "Reintentar",
  "common.cancel": "Cancelar",
  "common.close": "Cerrar",
  "common.slots": "{count} plaza",
  "common.slots#other": "{count} plazas",
  "common.copied": "Copiado",
  "common.notCopied": "El navegador no permitió copiar.",
  "common.unreachable": "No se puede contactar con Canopy. Comprueba que está en marcha e inténtalo de nuevo.",
  "common.wrong": "Algo ha fallado.",
};
