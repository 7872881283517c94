import type { audit as english } from "../en/dashboard-audit";

export const audit: Record<keyof typeof english, string> = {
  "audit.section": "Auditoría",
  "audit.text": "Objeto o detalle",
  "audit.when": "Cuándo",
  "audit.who": "Quién",
  "audit.action": "Acción",
  "audit.target": "Objeto",
  "audit.detail": "Detalle",
  "audit.result": "Resultado",
  "audit.allActions": "Todas las acciones",
  "audit.refresh": "Actualizar",
  "audit.none": "No hay nada registrado que coincida.",
  "audit.loading": "Leyendo el registro…",
  "audit.more": "Entradas anteriores",
  "audit.began": "empezó; no se sabe cómo terminó",
};
