import type { shell as english } from "../en/dashboard-shell";

export const shell: Record<keyof typeof english, string> = {
  "shell.title": "Panel",
  "shell.sections": "Secciones del panel",
  "shell.tree": "Árbol",
  "shell.unknown": "No hay nada en esta dirección",
  "shell.unknownText": "El panel no tiene esa sección.",
  "shell.toTree": "Al árbol",
  "shell.admin": "Administración de Django",
  "shell.apiDocs": "Documentos de la API",
  "shell.elsewhere": "Otras páginas",
};
