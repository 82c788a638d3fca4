"""Panels that several dashboards show."""

from __future__ import annotations

from dataclasses import replace

from grafana.plan import ALL, ONE, RATE, Kind, Panel, Query, quantile, rate

BUSY = f"rate(shardnet_loop_busy_seconds_total{{{ONE}}}{RATE})"
BY_SHARD = "max by (shard)"


def imbalance(total: str) -> str:
    """How many times the mean the most of any shard is; `total` is what each shard has, by job, instance and shard."""
    return f"max by (job, instance) ({total}) / (avg by (job, instance) ({total}) > 0)"


CONNECTIONS = Panel(
    "Connections",
    Kind.STAT,
    "short",
    (Query(f"sum(shardnet_connections_active{{{ALL}}})"),),
    "Open connections of all shards.",
    "A sudden fall is a restart, a network that broke, or a balancer that sends nobody: see Closed by reason.",
    width=4,
    height=4,
    decimals=0,
)
COMPLETIONS = Panel(
    "Completions",
    Kind.STAT,
    "ops",
    (Query(rate("shardnet_completions_total", ALL)),),
    "Operations that completed in a second, of all shards: reads, writes, accepts, timers.",
    "Fewer than usual with as many connections: clients ask less, or loops are busy with something else.",
    width=4,
    height=4,
)
SERVING = Panel(
    "Shards serving",
    Kind.STAT,
    "percentunit",
    (
        Query(
            f'sum(shardnet_shard_state{{{ALL},state="serving"}})'
            f" / clamp_min(sum(shardnet_shards_configured{{{ALL}}}), 1)"
        ),
    ),
    "The part of the shards that should serve and do.",
    "Below 100 %: `shardnet status` names the shard, the log says why its workers end.",
    width=4,
    height=4,
    warn=1.0,
    alarm=0.5,
    decimals=0,
)
LAG = Panel(
    "Loop lag, p99",
    Kind.STAT,
    "s",
    (Query(quantile(0.99, "shardnet_loop_lag_seconds", matchers=ALL)),),
    "How late a timer is run at worst, 99 times of 100: what every client waits for before anything is done for it.",
    "Look for who holds the loop: `slow turn` in the log says which handler, and where.",
    width=4,
    height=4,
    warn=0.01,
    alarm=0.05,
)
ACCEPT_FILL = Panel(
    "Accept queue, fullest",
    Kind.LINES,
    "percentunit",
    (
        Query(
            f"max by (instance) (shardnet_accept_queue_depth{{{ALL}}} / (shardnet_accept_queue_capacity{{{ALL}}} > 0))",
            "{{instance}}",
        ),
    ),
    "Connections that wait in the kernel to be accepted, of those that may wait, in the shard where that is worst.",
    "A shard that does not keep up, or has no worker: `shardnet status`. Raise `--backlog` and net.core.somaxconn for "
    "bursts.",
    warn=0.5,
    alarm=0.9,
    top=1.0,
)
LIMIT_FILL = Panel(
    "Connections of what is allowed",
    Kind.LINES,
    "percentunit",
    (
        Query(
            f"max by (instance) (sum by (job, instance, shard) (shardnet_connections_active{{{ALL}}})"
            f" / (sum by (job, instance, shard) (shardnet_connections_limit{{{ALL}}}) > 0))",
            "{{instance}}",
        ),
    ),
    "How near the fullest shard is to the connections that it allows itself; at 100 % others wait in its accept queue.",
    "Raise `--max-connections` and the limit of open files (LimitNOFILE=), or add shards or machines.",
    warn=0.8,
    alarm=0.95,
    top=1.0,
)
LOOP_USE = Panel(
    "Loop use, busiest shard",
    Kind.LINES,
    "percentunit",
    (Query(f"max by (instance) (rate(shardnet_loop_busy_seconds_total{{{ALL}}}{RATE}))", "{{instance}}"),),
    "The part of the time that the busiest loop was at work. At 100 % its clients wait for each other.",
    "All shards alike: add shards or machines. One alone: see Shards, and steer with `--steering least`.",
    warn=0.7,
    alarm=0.9,
    top=1.0,
)
EXCEPTIONS = Panel(
    "Handlers that raised",
    Kind.LINES,
    "ops",
    (Query(rate("shardnet_handler_exceptions_total", by="shard"), "{{shard}}"),),
    "Handlers that ended with an exception, each of which cost its connection.",
    "The log has the traceback of each, with shard and peer.",
)
DEADLINES = Panel(
    "Deadlines",
    Kind.LINES,
    "ops",
    (Query(rate("shardnet_deadlines_expired_total", by="kind"), "{{kind}}"),),
    "Connections that a deadline ended: the peer took no byte for `--write-stall` (write_stall), did not end its "
    "stream after we had (linger), or was still there when a drain was over (drain).",
    "write_stall: peers read too slowly, or are gone. drain: `--drain-timeout` is short for what they do.",
)
LISTEN_DROPS = Panel(
    "Dropped by the kernel",
    Kind.LINES,
    "cps",
    (
        Query(f"rate(shardnet_host_listen_drops_total{{{ALL}}}{RATE})", "drops {{instance}}"),
        Query(f"rate(shardnet_host_listen_overflows_total{{{ALL}}}{RATE})", "overflows {{instance}}"),
    ),
    "Connections that the kernel dropped at a listener, and accept queues that were full, of all listeners on the host "
    "(in its network namespace).",
    "An accept queue was full: see Accept queue. Drops without overflows are mostly floods of SYNs.",
)


def wide(panel: Panel, width: int, height: int | None = None) -> Panel:
    """The same panel in another size."""
    return replace(panel, width=width, height=height or panel.height)
