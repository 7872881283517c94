import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vitest/config";

/** The API this page talks to while developing (`npm run dev`). */
const api = "http://127.0.0.1:8000";

export default defineConfig(({ command }) => ({
  // Django serves the built files under /static/; the development server serves the page itself.
  base: command === "build" ? "/static/" : "/",
  plugins: [svelte()],
  build: { target: "es2022", assetsInlineLimit: 0 },
  server: { proxy: { "/api": api, "/login": api, "/admin": api } },
  test: { include: ["tests/**/*.test.ts"], environment: "node" },
}));
