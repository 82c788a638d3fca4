// Holds every dashboard, and the options of every panel, against Grafana's published types. The JSON becomes literals in
// TypeScript, so that an unknown key is an error and not only a wrong type; then the compiler says what it thinks.
// Exit status 0 when it has nothing to say.

import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { spawnSync } from "node:child_process";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const dashboards = join(here, "..", "dashboards");
const generated = join(here, "generated");

// Where the types of a panel's options and of its lines live.
const PANELS = {
  stat: "StatPanelCfg",
  timeseries: "TimeSeriesPanelCfg",
  bargauge: "BarGaugePanelCfg",
  heatmap: "HeatmapPanelCfg",
  "state-timeline": "StateTimelinePanelCfg",
  table: "TablePanelCfg",
};
const WITHOUT_FIELDS = new Set(["stat", "bargauge"]);

function panelsOf(dashboard) {
  return dashboard.panels.flatMap((panel) => [panel, ...(panel.panels ?? [])]).filter((panel) => panel.type !== "row");
}

function source(name, dashboard) {
  const lines = [
    'import type { AnnotationQuery, Dashboard } from "@grafana/schema";',
    'import type { Json } from "../json.d.ts";',
    ...Object.entries(PANELS).map(([type, cfg]) => {
      const folder = { "state-timeline": "statetimeline" }[type] ?? type;
      return `import type * as ${cfg} from "@grafana/schema/dist/esm/raw/composable/${folder}/panelcfg/x/${cfg}_types.gen";`;
    }),
    // What the data source's plugin adds to an annotation, and its types do not know.
    "type Asked = AnnotationQuery & { expr: string; step?: string; titleFormat?: string };",
    "type Page = Omit<Dashboard, 'annotations'> & { annotations: { list: Asked[] } };",
    `export const dashboard: Json<Page> = ${JSON.stringify(dashboard, null, 2)};`,
  ];
  for (const panel of panelsOf(dashboard)) {
    const cfg = PANELS[panel.type];
    if (cfg === undefined) {
      throw new Error(`${name}: no types are known for panels of type ${panel.type}`);
    }
    lines.push(`export const options${panel.id}: Json<Partial<${cfg}.Options>> = ${JSON.stringify(panel.options ?? {}, null, 2)};`);
    const custom = panel.fieldConfig?.defaults?.custom;
    if (custom !== undefined && !WITHOUT_FIELDS.has(panel.type)) {
      lines.push(`export const custom${panel.id}: Json<Partial<${cfg}.FieldConfig>> = ${JSON.stringify(custom, null, 2)};`);
    }
  }
  return lines.join("\n") + "\n";
}

rmSync(generated, { recursive: true, force: true });
mkdirSync(generated);
const names = readdirSync(dashboards).filter((name) => name.endsWith(".json"));
for (const name of names) {
  const dashboard = JSON.parse(readFileSync(join(dashboards, name), "utf8"));
  writeFileSync(join(generated, name.replace(/\.json$/, ".ts")), source(name, dashboard));
}
const files = names.map((name) => join(generated, name.replace(/\.json$/, ".ts")));
const compiler = join(here, "node_modules", "typescript", "bin", "tsc");
const flags = ["--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--moduleResolution", "bundler", "--target", "es2022"];
const told = spawnSync(process.execPath, [compiler, ...flags, ...files], { stdio: "inherit" });
if (told.status === 0) {
  console.log(`validate: ${names.length} dashboards are what Grafana's types say`);
}
process.exit(told.status ?? 1);
