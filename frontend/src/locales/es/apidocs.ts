import type { apidocs as english } from "../en/apidocs";

export const apidocs: Record<keyof typeof english, string> = {
  "apidocs.intro": "Todas las direcciones que pueden usar los programas. Envía una clave de API como token Bearer; ./canopy key create imprime una.",
  "apidocs.filter": "Filtrar las direcciones",
  "apidocs.nothing": "Ninguna dirección coincide.",
  "apidocs.required": "obligatorio",
  "apidocs.key": "Requiere una clave de API.",
  "apidocs.staff": "Para operadores.",
  "apidocs.administrator": "Para administradores.",
  "apidocs.member": "Requiere una clave de API o haber entrado.",
  "apidocs.anyone": "No requiere entrar.",
  "apidocs.parameters": "Parámetros",
  "apidocs.body": "Cuerpo (JSON)",
  "apidocs.answer": "Respuesta {status}",
  "apidocs.errors": "Errores: {statuses}",
  "apidocs.command": "Orden para {path}",
};
