// Draws a dashboard's first rows: panels of the committed JSON, with the figures that window.ANSWERS has for each query.
// The frames, lines, tables, units and thresholds are Grafana's components. Panels that it publishes no component for say
// so. Lives here: from the JSON to components. Must not live here: what is asked, and of whom.

import React from "react";
import { createRoot } from "react-dom/client";
import {
  FieldConfigOptionsRegistry,
  FieldType,
  ThemeContext,
  applyFieldOverrides,
  createTheme,
  dateTime,
  identityOverrideProcessor,
  sortDataFrame,
  standardEditorsRegistry,
  standardFieldConfigEditorRegistry,
  toDataFrame,
} from "@grafana/data";
import {
  BarGauge,
  BigValue,
  BigValueColorMode,
  BigValueGraphMode,
  GlobalStyles,
  PanelChrome,
  Table,
  TimeSeries,
} from "@grafana/ui";

const COLUMN = 58; // Pixels; Grafana has 24 columns, and rows of 30 pixels with gaps of 8.
const ROW = 38;
const GAP = 8;

const { dashboard, answers, from, to, height } = (window as any).PICTURE;

// Grafana registers these in its core, which is not published.
const registry = new FieldConfigOptionsRegistry();
const option = (id: string, path: string, isCustom: boolean) =>
  registry.register({
    id, path, name: id, description: "", isCustom, editor: null as any, override: null as any,
    process: identityOverrideProcessor as any, shouldApply: () => true, settings: {},
  } as any);
for (const id of ["displayName", "unit", "min", "max", "decimals", "noValue", "color", "thresholds", "mappings"]) {
  option(id, id, false);
}
for (const id of [
  "lineWidth", "fillOpacity", "drawStyle", "lineInterpolation", "stacking", "showPoints", "pointSize", "spanNulls",
  "axisPlacement", "axisLabel", "thresholdsStyle", "gradientMode", "scaleDistribution", "hideFrom", "lineStyle",
  "axisColorMode", "transform",
]) {
  option(`custom.${id}`, id, true);
}
standardFieldConfigEditorRegistry.setInit(() => registry.list() as any);
standardEditorsRegistry.setInit(() => []);

const theme = createTheme({ colors: { mode: "dark" } });

function named(legend: string, labels: Record<string, string>): string {
  return legend.replace(/\{\{(\w+)\}\}/g, (_, label) => labels[label] ?? "");
}

function framesOf(panel: any): any[] {
  const frames = panel.targets.flatMap((target: any, number: number) =>
    (answers[`${panel.id}.${number}`] ?? []).map((series: any) => {
      const name = target.legendFormat === "__auto" ? "" : named(target.legendFormat ?? "", series.metric);
      return toDataFrame({
        refId: target.refId,
        name,
        fields: [
          { name: "Time", type: FieldType.time, values: series.values.map((pair: any) => pair[0] * 1000) },
          {
            name: "Value",
            type: FieldType.number,
            labels: series.metric,
            values: series.values.map((pair: any) => Number(pair[1])),
            config: name ? { displayNameFromDS: name } : {},
          },
        ],
      });
    }),
  );
  const fieldConfig = { defaults: { color: { mode: colours(panel) }, ...panel.fieldConfig.defaults }, overrides: panel.fieldConfig.overrides };
  return applyFieldOverrides({
    data: frames, fieldConfig, replaceVariables: (value: string) => value, theme, timeZone: "utc",
    fieldConfigRegistry: registry,
  });
}

function colours(panel: any): string {
  return panel.type === "timeseries" ? "palette-classic" : "thresholds";
}

function last(frame: any): any {
  const field = frame.fields[1];
  return field.display(field.values[field.values.length - 1]);
}

function Lines({ panel, frames, width, height }: any) {
  const legend = { ...panel.options.legend, calcs: [], displayMode: "list", placement: "bottom", showLegend: true };
  return (
    <TimeSeries
      width={width} height={height} frames={frames} timeZone="utc" legend={legend} options={panel.options}
      timeRange={{ from: dateTime(from * 1000), to: dateTime(to * 1000), raw: { from: "now-2m", to: "now" } } as any}
    />
  );
}

function Stat({ frames, width, height }: any) {
  const field = frames[0].fields[1];
  return (
    <BigValue
      width={width} height={height} theme={theme} value={last(frames[0])} colorMode={BigValueColorMode.Value}
      graphMode={BigValueGraphMode.Area} sparkline={{ y: field, x: frames[0].fields[0] } as any}
    />
  );
}

function Bars({ frames, width, height }: any) {
  const each = Math.floor(height / Math.max(1, frames.length)) - 4;
  const shown = frames.map((frame: any) => ({ name: frame.name, field: frame.fields[1], value: last(frame) }));
  const top = Math.max(...shown.map((one: any) => one.value.numeric), 1e-9);
  return (
    <div>
      {shown.map((one: any) => (
        <div key={one.name} style={{ marginBottom: 4 }}>
          <BarGauge
            width={width} height={each} theme={theme} orientation={"horizontal" as any} displayMode={"gradient" as any}
            value={{ ...one.value, title: one.name }} display={one.field.display}
            field={{ ...one.field.config, min: 0, max: one.field.config.max ?? top }}
          />
        </div>
      ))}
    </div>
  );
}

function Rows({ panel, frames, width, height }: any) {
  const labels = Object.keys(frames[0].fields[1].labels).filter((label) => !["__name__", "job"].includes(label));
  const value = frames[0].fields[1];
  const rows = toDataFrame({
    fields: [
      ...labels.map((label) => ({ name: label, type: FieldType.string, values: frames.map((f: any) => f.fields[1].labels[label]) })),
      { name: "Value", type: FieldType.number, config: value.config, values: frames.map((f: any) => f.fields[1].values.at(-1)) },
    ],
  });
  const [made] = applyFieldOverrides({
    data: [rows], fieldConfig: { defaults: panel.fieldConfig.defaults, overrides: [] }, replaceVariables: (v: string) => v,
    theme, timeZone: "utc", fieldConfigRegistry: registry,
  });
  return <Table width={width} height={height} data={sortDataFrame(made, 0)} />;
}

const DRAWN: Record<string, any> = { timeseries: Lines, stat: Stat, bargauge: Bars, table: Rows };

function Panel({ panel }: any) {
  const width = panel.gridPos.w * COLUMN - GAP;
  const high = panel.gridPos.h * ROW - GAP;
  const frames = framesOf(panel);
  const Drawn = DRAWN[panel.type];
  const note = Drawn === undefined ? `${panel.type}: drawn by Grafana itself` : frames.length === 0 ? "No data" : "";
  return (
    <div style={{ position: "absolute", left: panel.gridPos.x * COLUMN, top: panel.gridPos.y * ROW }}>
      <PanelChrome title={panel.title} width={width} height={high}>
        {(inner: number, room: number) =>
          note ? (
            <div style={{ padding: 16, color: theme.colors.text.secondary }}>{note}</div>
          ) : (
            <Drawn panel={panel} frames={frames} width={inner} height={room} />
          )
        }
      </PanelChrome>
    </div>
  );
}

function Headline({ row }: any) {
  const place = { position: "absolute" as const, left: 8, top: row.gridPos.y * ROW + 6, fontSize: 16, fontWeight: 500 };
  return <div style={place}>{row.title}</div>;
}

const shown = dashboard.panels.filter((panel: any) => panel.gridPos.y + panel.gridPos.h <= height && !panel.collapsed);
const style = {
  position: "relative" as const, width: 24 * COLUMN, height: height * ROW, background: theme.colors.background.canvas,
  color: theme.colors.text.primary, fontFamily: theme.typography.fontFamily,
};
createRoot(document.getElementById("root")!).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <div style={style}>
      {shown.map((panel: any) =>
        panel.type === "row" ? <Headline key={panel.id} row={panel} /> : <Panel key={panel.id} panel={panel} />,
      )}
    </div>
  </ThemeContext.Provider>,
);
