import type { answering as english } from "../en/answering";

export const answering: Record<keyof typeof english, string> = {
  "compare.which": "Qué respuesta se muestra",
  "compare.stop": "Detener",
  "compare.keep": "Conservar esta",
  "compare.keepOf": "Conservar esta: {model}",
  "compare.with": "Comparar con…",
  "compare.onlyOne": "Ahora solo se sirve un modelo: no hay otro con que compararlo.",
  "compare.comparing": "Comparado con {model}",
  "compare.end": "Dejar de comparar",
  "preset.title": "Plantillas",
  "preset.more": "Añadir o quitar plantillas en los ajustes",
  "preset.none": "Aún ninguna: añade una en los ajustes",
  "preset.applied": "Plantilla: {name}",
  "preset.end": "Responder sin la plantilla",
};
