import { svelte } from "@sveltejs/vite-plugin-svelte";
import { type Plugin, build } from "vite";
import { defineConfig } from "vitest/config";

/** The API this page talks to while developing (`npm run dev`). */
const api = "http://127.0.0.1:8000";

/** KaTeX offers each font in three formats; every browser that can run these pages takes the first. */
const smallFonts = {
  name: "small-fonts",
  enforce: "pre" as const,
  transform(code: string, id: string) {
    if (!id.includes("katex.min.css")) return null;
    return code.replace(/,url\([^)]*\.(?:woff|ttf)\) format\("[^"]*"\)/g, "");
  },
};

/** The chat page's texts of one language are one file: small ones cost a request each. */
function chatTexts(id: string): string | null {
  const language = /\/locales\/(\w+)\/(?:chat|sidebar|start)\.ts$/.exec(id)?.[1];
  return language ? `texts-${language}` : null;
}

/** Builds the service worker as one classic script: modules in workers are not everywhere yet. */
function serviceWorker(): Plugin {
  return {
    name: "canopy-service-worker",
    apply: "build",
    async closeBundle() {
      await build({
        configFile: false,
        publicDir: false,
        logLevel: "warn",
        define: { "process.env.NODE_ENV": JSON.stringify("production") },
        build: {
          target: "es2022",
          emptyOutDir: false,
          lib: { entry: "src/sw/worker.ts", formats: ["iife"], name: "worker", fileName: () => "sw.js" },
        },
      });
    },
  };
}

export default defineConfig(({ command, mode }) => ({
  // Django serves the built files under /static/; the development server serves the page itself.
  base: command === "build" ? "/static/" : "/",
  // Below a proxy's path the server changes the addresses in the page (api/http/pages.py); all others are relative.
  experimental: { renderBuiltUrl: (_file, { hostType }) => (hostType === "html" ? undefined : { relative: true }) },
  plugins: [svelte(), smallFonts, serviceWorker()],
  // markdown-it's table of all entities weighs more than our pages: the browser has one.
  ...(command === "build" ? { resolve: { alias: { entities: "/src/lib/markdown/entities.ts" } } } : {}),
  build: {
    target: "es2022",
    cssTarget: ["chrome123", "firefox120", "safari17.5"], // the first with light-dark()
    assetsInlineLimit: 0,
    rolldownOptions: { output: { codeSplitting: { groups: [{ name: chatTexts }] } } },
  },
  server: { proxy: { "/api": api, "/login": api, "/admin": api } },
  // Components in tests are those of the browser, not of a server.
  ...(mode === "test" ? { resolve: { conditions: ["browser"] } } : {}),
  test: { include: ["tests/**/*.test.ts"], environment: "node", setupFiles: ["tests/texts.ts"], testTimeout: 20_000 },
}));
