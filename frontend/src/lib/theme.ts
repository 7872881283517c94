/** Light, dark, or what the system has. Remembered on this device; public/theme.js sets it before the first paint. */
export const THEMES = ["system", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];

const STORED = "canopy.theme";

function isTheme(name: string | null): name is Theme {
  return THEMES.some((theme) => theme === name);
}

/** The theme that was chosen on this device. */
export function chosenTheme(): Theme {
  try {
    const stored = localStorage.getItem(STORED);
    return isTheme(stored) ? stored : "system";
  } catch {
    return "system";
  }
}

/** Choose a theme and remember it on this device; other tabs follow. */
export function chooseTheme(theme: Theme): void {
  try {
    if (theme === "system") localStorage.removeItem(STORED);
    else localStorage.setItem(STORED, theme);
  } catch {
    // Nothing is remembered here; this page changes all the same.
  }
  apply(theme);
}

/** Follow the theme that another tab chooses. */
export function startTheme(): void {
  apply(chosenTheme());
  addEventListener("storage", (event) => {
    if (event.key === STORED || event.key === null) apply(chosenTheme());
  });
}

function apply(theme: Theme): void {
  if (theme === "system") delete document.documentElement.dataset["theme"];
  else document.documentElement.dataset["theme"] = theme;
  colourFrame(theme);
  dispatchEvent(new CustomEvent(THEME_CHANGED));
}

/** A window event: the colours are others now. (The system's own change is a media query's.) */
export const THEME_CHANGED = "canopy:theme";

/** Whether the page is dark now. */
export function isDark(): boolean {
  const theme = chosenTheme();
  return theme === "dark" || (theme === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
}

/** The browser's own frame takes the page's colour. */
function colourFrame(theme: Theme): void {
  for (const meta of document.querySelectorAll<HTMLMetaElement>("meta[name=theme-color]")) {
    const scheme = meta.content === DARK_FRAME ? "dark" : "light";
    if (theme === "system") meta.media = `(prefers-color-scheme: ${scheme})`;
    else meta.media = theme === scheme ? "all" : "not all";
  }
}

const DARK_FRAME = "#111512"; // as in index.html, and --bg in tokens.css
