/** How large a text is as UTF-8: "120 B", "3.4 kB". */
export function sizeOf(text: string, language: string): string {
  const bytes = new TextEncoder().encode(text).length;
  if (bytes < 1000) return `${bytes} B`;
  return `${(bytes / 1000).toLocaleString(language, { maximumFractionDigits: bytes < 10_000 ? 1 : 0 })} kB`;
}
