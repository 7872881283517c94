// The theme that was chosen on this device (src/lib/theme.ts), before the first paint.
try {
  const theme = localStorage.getItem("canopy.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is forbidden here: the system's theme stays.
}
