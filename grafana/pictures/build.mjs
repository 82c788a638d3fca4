// Makes out/app.js of app.tsx and Grafana's components.

import { build } from "esbuild";

await build({
  entryPoints: ["app.tsx"],
  bundle: true,
  outfile: "out/app.js",
  format: "iife",
  platform: "browser",
  jsx: "transform",
  minify: true,
  logLevel: "error",
  define: { "process.env.NODE_ENV": '"production"', "process.env": "{}", global: "window" },
  loader: { ".svg": "dataurl", ".woff2": "dataurl", ".woff": "dataurl", ".ttf": "dataurl" },
});
