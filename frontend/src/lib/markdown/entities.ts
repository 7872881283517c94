/** In place of the package `entities` (vite.config.ts), of which markdown-it uses this function alone. */

const ENTITY = /&(?:[a-z][a-z0-9]*|#\d+|#x[0-9a-f]+);/gi;

/** A text with its closed entities (`&amp;`) replaced; what is none stays as it is. */
export function decodeHTMLStrict(text: string): string {
  return text.replace(ENTITY, (entity) => {
    const field = document.createElement("textarea"); // holds text alone, whatever is put into it
    field.innerHTML = entity;
    return field.value;
  });
}
