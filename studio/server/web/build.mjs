// Bundles src/ into static/. File names have a hash of the content; static/index.html names them.

import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "static");
rmSync(out, { recursive: true, force: true });
const built = await build({
  absWorkingDir: here,
  entryPoints: ["src/main.tsx", "src/style.css", "src/icon.svg"],
  entryNames: "[name]-[hash]",
  loader: { ".svg": "copy" },
  outdir: out,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "eof",
  metafile: true,
});
let page = readFileSync(join(here, "src", "index.html"), "utf8");
for (const [path, { entryPoint }] of Object.entries(built.metafile.outputs)) {
  if (entryPoint) page = page.replace(basename(entryPoint), `static/${basename(path)}`);
}
writeFileSync(join(out, "index.html"), page);
