import type { attachments as english } from "../en/attachments";

export const attachments: Record<keyof typeof english, string> = {
  "attach.list": "Archivos adjuntos",
  "attach.open": "Ver {name}",
  "attach.remove": "Quitar {name}",
  "attach.copy": "Copiar el texto",
  "attach.insert": "Ponerlo en el mensaje",
  "attach.pasted": "Texto pegado",
  "attach.image": "{name} es una imagen; solo se puede adjuntar texto.",
  "attach.binary": "{name} no es un texto; solo se puede adjuntar texto.",
  "attach.encoding": "{name} no se puede leer como texto. Guárdalo en UTF-8 y adjúntalo de nuevo.",
  "attach.empty": "{name} está vacío.",
  "attach.unreadable": "{name} no se puede leer.",
  "attach.tooLarge": "{name} es demasiado largo: un mensaje puede tener {most} caracteres.",
  "attach.tooLong": "{name} es demasiado largo: {count} caracteres, como máximo {most}.",
  "attach.tooLongTogether": "Con {name} el mensaje es demasiado largo: {count} caracteres, como máximo {most}.",
  "attach.tooMany": "A un mensaje se pueden adjuntar como máximo {most} archivos.",
  "attach.notKept": "Este navegador no tiene sitio para guardar estos archivos: envía el mensaje antes de recargar o salir de la página.",
};
