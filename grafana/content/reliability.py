"""Reliability: restarts, reloads, loans, pauses: whether anything was lost, and what is running."""

from __future__ import annotations

from grafana.content.shared import EXCEPTIONS, LISTEN_DROPS, SERVING
from grafana.plan import ALL, ONE, RATE, Dashboard, Kind, Panel, Query, Row

NOW = Row(
    "Now",
    (
        SERVING,
        Panel(
            "Unasked restarts, 24 h",
            Kind.STAT,
            "short",
            (Query(f'sum(increase(shardnet_shard_restarts_total{{{ALL},reason=~"crash|signal|hang"}}[24h]))'),),
            "Workers that crashed, were killed or hung within a day. What they had not accepted was served by others.",
            "The log has the last stacks of each, and what it ended with.",
            width=4,
            height=4,
            warn=1,
            alarm=10,
            decimals=0,
        ),
        Panel(
            "Last reload",
            Kind.STAT,
            "none",
            (Query(f"min(shardnet_reload_last_successful{{{ALL}}})"),),
            "1 unless the last reload failed, and older code serves.",
            "0: the log says why the new code does not come up. The old one serves on.",
            width=4,
            height=4,
            warn=1,
            alarm=0.5,
            decimals=0,
        ),
        Panel(
            "Age of the code",
            Kind.STAT,
            "s",
            (Query(f"time() - max(shardnet_reload_last_success_timestamp_seconds{{{ALL}}})"),),
            "How long ago the code that serves was loaded.",
            "Older than the last deployment: that server was not reloaded.",
            width=4,
            height=4,
        ),
        Panel(
            "Listeners lent",
            Kind.STAT,
            "short",
            (Query(f"sum(shardnet_listeners_lent{{{ALL}}})"),),
            "Shards on whose listeners a sibling accepts, because they have no worker that does.",
            "Vacant shards are always lent. Others: `shardnet status` names the shard, and who has its listeners.",
            width=4,
            height=4,
            decimals=0,
        ),
        Panel(
            "Uptime",
            Kind.STAT,
            "s",
            (Query(f"time() - min(shardnet_supervisor_start_time_seconds{{{ALL}}})"),),
            "How long ago the oldest server started. Reloads and upgrades do not end it.",
            "Shorter than expected: something restarts the whole service.",
            width=4,
            height=4,
        ),
    ),
)

LIFE = Row(
    "Workers",
    (
        Panel(
            "Restarts by reason",
            Kind.LINES,
            "short",
            (Query(f"sum by (reason) (increase(shardnet_shard_restarts_total{{{ONE}}}{RATE}))", "{{reason}}"),),
            "Workers that were replaced: unasked (crash, signal, hang), and asked (memory, lifetime, asked, reload).",
            "hang: `slow turn` and the stacks in the log. memory: see Shards, Memory.",
        ),
        Panel(
            "Unasked restarts per shard",
            Kind.LINES,
            "short",
            (
                Query(
                    "sum by (instance, shard) (increase(shardnet_shard_restarts_total"
                    f'{{{ONE},reason=~"crash|signal|hang"}}{RATE}))',
                    "{{instance}} {{shard}}",
                ),
            ),
            "Where workers ended that nobody had asked to.",
            "One shard alone: what its clients send. All at once: the code, or the machine's memory.",
        ),
        Panel(
            "Loans of listeners",
            Kind.LINES,
            "short",
            (Query(f"sum by (shard) (increase(shardnet_listener_loans_total{{{ONE}}}{RATE}))", "{{shard}}"),),
            "How often a shard's listeners were given to a sibling, because its worker had ended or did not turn.",
            "Loans without restarts: a loop that was held up for a quarter of a second or more. See Slow turns.",
        ),
        EXCEPTIONS,
        Panel(
            "Reloads",
            Kind.LINES,
            "short",
            (Query(f"sum by (outcome) (increase(shardnet_reloads_total{{{ALL}}}{RATE}))", "{{outcome}}"),),
            "New generations that came up, and such that did not.",
            "failed: the log says why. Nobody has noticed: the old generation serves.",
        ),
        Panel(
            "Generation",
            Kind.LINES,
            "none",
            (Query(f"shardnet_generation{{{ALL}}}", "{{instance}}"),),
            "Which generation of workers serves.",
            "Instances that were reloaded equally often since their start have the same.",
            decimals=0,
        ),
    ),
)

DOOR = Row(
    "At the door",
    (
        Panel(
            "Accepting paused",
            Kind.LINES,
            "short",
            (
                Query(
                    f"sum by (shard, reason) (increase(shardnet_accept_pauses_total{{{ONE}}}{RATE}))",
                    "{{shard}} {{reason}}",
                ),
            ),
            "How often accepting paused: at the limit of connections, or without files or memory.",
            "limit: raise `--max-connections`. files: raise the limit of open files.",
        ),
        LISTEN_DROPS,
        Panel(
            "Not ready, and serving",
            Kind.LINES,
            "none",
            (Query(f"max by (instance) (shardnet_lame_duck{{{ALL}}})", "{{instance}}"),),
            "1 while an operator has said that no new clients are to be sent here.",
            "`shardnet lame-duck off` when it was forgotten.",
            decimals=0,
        ),
    ),
)

RUNNING = Row(
    "What is running",
    (
        Panel(
            "Versions",
            Kind.TABLE,
            "none",
            (Query(f"count by (instance, version, python, engine) (shardnet_build_info{{{ALL}}})"),),
            "Version, interpreter and engine of each server.",
            "An engine `python` where it should be `compiled` costs twice the CPU: see docs/building.md.",
            width=12,
        ),
        Panel(
            "Resident memory",
            Kind.LINES,
            "bytes",
            (Query(f"sum by (shard) (shardnet_process_resident_memory_bytes{{{ALL}}})", "{{shard}}"),),
            "Memory of each process, shared pages in full; also of the supervisor and the exporter.",
            "For sums see Shards, Memory, which has shared pages in proportion.",
            width=6,
        ),
        Panel(
            "Scrapes",
            Kind.LINES,
            "s",
            (Query(f"shardnet_scrape_duration_seconds{{{ALL}}}", "{{instance}}"),),
            "How long the exporter takes for a scrape. Workers have no part in it.",
            "Near the scrape timeout: very many shards, or metrics of the app's own with very many series.",
            width=6,
        ),
    ),
)

DASHBOARD = Dashboard(
    "shardnet-reliability",
    "shardnet / Reliability",
    "Restarts, reloads, loans and pauses: whether anything was lost, and what is running.",
    (NOW, LIFE, DOOR, RUNNING),
)
