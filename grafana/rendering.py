"""From plans of dashboards to Grafana's JSON, by Grafana's own builders.

Lives here: how each kind of panel is drawn. Must not live here: what is asked (see `content`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any, Final, assert_never

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models import prometheus as promql

from grafana.plan import ALL, Dashboard, Kind, Panel, Row

__all__ = ["render"]

SOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, ORANGE, RED = "green", "orange", "red"
STATES: Final = (("serving", GREEN), ("booting", "blue"), ("draining", ORANGE), ("backoff", RED))
SHARDS_PER_ROW: Final = 4


def render(plan: Dashboard) -> str:
    """The dashboard's JSON, as it is committed."""
    page = (
        dashboard.Dashboard(plan.title)
        .uid(plan.uid)
        .description(plan.description)
        .tags(["shardnet"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(_links())
    )
    for variable in _variables():
        page.with_variable(variable)
    for annotation in _annotations():
        page.annotation(annotation)
    numbers = itertools.count(1)
    top = 0
    for row in plan.rows:
        top = _add_row(page, row, numbers, top)
    made = json.loads(JSONEncoder().encode(page.build()))
    _without_leftovers(made)
    return json.dumps(made, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _without_leftovers(made: dict[str, Any]) -> None:
    """Take out what the builders say always, and Grafana's types know no more, or not there."""
    for variable in made["templating"]["list"]:
        for key in ("auto", "auto_count", "auto_min"):
            variable.pop(key, None)
    for panel in made["panels"]:
        if panel["type"] == "table":
            panel["options"].pop("footer", None)


def _links() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("shardnet").type(model.DashboardLinkType.DASHBOARDS).tags(["shardnet"])
    return link.include_vars(True).keep_time(True).as_dropdown(False)


def _variables() -> Iterator[Any]:
    yield dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    yield _query_variable("job", "Job", "label_values(shardnet_build_info, job)")
    yield _query_variable("instance", "Instance", 'label_values(shardnet_build_info{job=~"$job"}, instance)')
    shards = _query_variable("shard", "Shard", f"label_values(shardnet_shard_state{{{ALL}}}, shard)")
    yield shards.sort(model.VariableSort.NUMERICAL_ASC)


def _query_variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": query, "refId": name})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(model.VariableOption(text="All", value="$__all", selected=True))
    )


def _annotations() -> Iterator[dashboard.AnnotationQuery]:
    marks = (
        ("Reloads", "blue", f"changes(shardnet_generation{{{ALL}}}[1m]) > 0", "generation changed"),
        (
            "Restarts",
            RED,
            f'increase(shardnet_shard_restarts_total{{{ALL},reason=~"crash|signal|hang"}}[1m]) > 0',
            "shard {{shard}}: {{reason}}",
        ),
    )
    for name, colour, expr, title in marks:
        query = dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(colour)
        yield query.expr(expr).step("60s").title_format(title)


def _add_row(page: dashboard.Dashboard, row: Row, numbers: Iterator[int], top: int) -> int:
    """Put a row and its panels below what is there; where the next one begins."""
    headline = dashboard.Row(row.title).id(next(numbers)).grid_pos(model.GridPos(h=1, w=24, x=0, y=top))
    top += 1
    if row.each_shard:
        headline.collapsed(True).repeat("shard")
    else:
        headline.collapsed(False)
        page.with_row(headline)
    left = height = 0
    for panel in row.panels:
        if left + panel.width > 24:
            top, left, height = top + height, 0, 0
        place = model.GridPos(h=panel.height, w=panel.width, x=left, y=top)
        built = _build(panel).id(next(numbers)).grid_pos(place)
        if row.each_shard:
            headline.with_panel(built)
        else:
            page.with_panel(built)
        left, height = left + panel.width, max(height, panel.height)
    if row.each_shard:
        page.with_row(headline)
    return top + height


def _build(panel: Panel) -> Any:
    drawn = _drawn(panel)
    drawn.title(panel.title).datasource(SOURCE).unit(panel.unit)
    drawn.description(f"{panel.shows}\n\n**What to do:** {panel.cure}")
    if panel.kind not in (Kind.STATES, Kind.TABLE):
        drawn.min(0) if not any(query.mirrored for query in panel.queries) else None
    if panel.top is not None:
        drawn.max(panel.top)
    if panel.decimals is not None:
        drawn.decimals(panel.decimals)
    if panel.kind not in (Kind.SHARDS_HEAT, Kind.BUCKETS_HEAT):
        drawn.thresholds(_thresholds(panel))
    for number, query in enumerate(panel.queries):
        target = prometheus.Dataquery().datasource(SOURCE).expr(query.expr).ref_id(chr(ord("A") + number))
        target.legend_format(query.legend or "__auto")
        if panel.kind is Kind.TABLE:
            target.format(promql.PromQueryFormat.TABLE).instant()
        elif panel.kind is Kind.BARS:
            target.instant()
        else:
            target.range()
        if panel.kind is Kind.BUCKETS_HEAT:
            target.format(promql.PromQueryFormat.HEATMAP)
        drawn.with_target(target)
    return drawn


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    steps = [model.Threshold(value=None, color=GREEN)]
    if panel.warn is not None and panel.alarm is not None and panel.alarm < panel.warn:  # Less is worse.
        steps = [
            model.Threshold(value=None, color=RED),
            model.Threshold(value=panel.alarm, color=ORANGE),
            model.Threshold(value=panel.warn, color=GREEN),
        ]
    else:
        steps += [model.Threshold(panel.warn, ORANGE)] if panel.warn is not None else []
        steps += [model.Threshold(panel.alarm, RED)] if panel.alarm is not None else []
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


def _drawn(panel: Panel) -> Any:
    last = common.ReduceDataOptions().calcs(["lastNotNull"])
    match panel.kind:
        case Kind.STAT:
            return stat.Panel().reduce_options(last).graph_mode(shapes.BigValueGraphMode.AREA)
        case Kind.LINES | Kind.STACK:
            return _lines(panel)
        case Kind.BARS:
            gauge = bargauge.Panel().reduce_options(last).orientation(shapes.VizOrientation.HORIZONTAL)
            return gauge.display_mode(shapes.BarGaugeDisplayMode.GRADIENT).value_mode(shapes.BarGaugeValueMode.TEXT)
        case Kind.SHARDS_HEAT:
            return _heat(panel, heatmap.YAxisConfig().axis_label("shard"))
        case Kind.BUCKETS_HEAT:
            return _heat(panel, heatmap.YAxisConfig().unit(panel.unit))
        case Kind.STATES:
            return _states()
        case Kind.TABLE:
            return _table()
        case _:
            assert_never(panel.kind)


def _lines(panel: Panel) -> timeseries.Panel:
    legend = (
        common.VizLegendOptions()
        .display_mode(shapes.LegendDisplayMode.TABLE)
        .placement(shapes.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "max", "mean"])
    )
    tooltip = common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING)
    lines = timeseries.Panel().legend(legend).tooltip(tooltip).line_width(1).show_points(shapes.VisibilityMode.NEVER)
    if panel.kind is Kind.STACK:
        lines.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL)).fill_opacity(40)
    else:
        lines.fill_opacity(8)
    if panel.warn is not None or panel.alarm is not None:
        style = common.GraphThresholdsStyleConfig().mode(shapes.GraphThresholdsStyleMode.DASHED)
        lines.thresholds_style(style)
    for query in panel.queries:
        if query.mirrored:
            down = model.DynamicConfigValue(id_val="custom.transform", value="negative-Y")
            lines.override_by_name(query.legend, [down])
    return lines


def _heat(panel: Panel, axis: heatmap.YAxisConfig) -> heatmap.Panel:
    colours = (
        heatmap.HeatmapColorOptions()
        .mode(heat.HeatmapColorMode.SCHEME)
        .scheme("Turbo")
        .steps(64)
        .exponent(0.5)
        .fill("dark-orange")
        .reverse(False)
    )
    if panel.top is not None and panel.kind is Kind.SHARDS_HEAT:
        colours.min(0).max(panel.top)
    drawn = heatmap.Panel().calculate(False).color(colours).y_axis(axis).cell_gap(1).show_legend()
    if panel.kind is Kind.SHARDS_HEAT:
        drawn.cell_values(heatmap.CellValues().unit(panel.unit))
    return drawn


def _states() -> statetimeline.Panel:
    mappings: list[model.ValueMap | model.RangeMap | model.RegexMap | model.SpecialValueMap] = [
        model.ValueMap(
            options={
                str(number): model.ValueMappingResult(text=state, color=colour, index=number)
                for number, (state, colour) in enumerate(STATES, start=1)
            }
        )
    ]
    return (
        statetimeline.Panel()
        .mappings(mappings)
        .merge_values(True)
        .show_value(shapes.VisibilityMode.NEVER)
        .row_height(0.8)
    )


def _table() -> table.Panel:
    hidden = {"Time": True, "__name__": True, "job": True}
    organise = model.DataTransformerConfig(id_val="organize", options={"excludeByName": hidden})
    return table.Panel().with_transformation(organise)
