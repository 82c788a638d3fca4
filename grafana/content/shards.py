"""Shards: how many connections, whether it is fair over them, what each loop, queue and process is at."""

from __future__ import annotations

from grafana.content.shared import ACCEPT_FILL, BUSY, CONNECTIONS, LIMIT_FILL, LISTEN_DROPS, imbalance, wide
from grafana.plan import ONE, RATE, Dashboard, Kind, Panel, Query, Row, quantile, rate

ACTIVE = f"sum by (job, instance, shard) (shardnet_connections_active{{{ONE}}})"

BALANCE = Row(
    "Connections: how many, how fair, how near the limit",
    (
        CONNECTIONS,
        Panel(
            "Busiest, of the mean",
            Kind.STAT,
            "none",
            (Query(f"max({imbalance(ACTIVE)})"),),
            "How many times the mean number of connections the shard with the most has.",
            "Above 2 with many connections: try `--steering least`.",
            width=4,
            height=4,
            warn=1.5,
            alarm=2.0,
            decimals=2,
        ),
        Panel(
            "Nearest to its limit",
            Kind.STAT,
            "percentunit",
            (
                Query(
                    f"max({ACTIVE} / (sum by (job, instance, shard) (shardnet_connections_limit{{{ONE}}}) > 0))",
                ),
            ),
            "Connections of the fullest shard, of those that it allows itself.",
            "Raise `--max-connections` and the limit of open files, or add shards or machines.",
            width=4,
            height=4,
            warn=0.8,
            alarm=0.95,
        ),
        wide(LIMIT_FILL, 6, 4),
        wide(ACCEPT_FILL, 6, 4),
        Panel(
            "Connections per shard",
            Kind.SHARDS_HEAT,
            "short",
            (Query(f"sum by (shard) (shardnet_connections_active{{{ONE}}})", "{{shard}}"),),
            "Each row is a shard; the brighter, the more connections.",
            "Rows of one colour are fair. One that stays dark gets none: `shardnet status`, and Listeners lent.",
            width=12,
        ),
        Panel(
            "Connections per shard, now",
            Kind.BARS,
            "short",
            (Query(f"sort_desc(sum by (shard) (shardnet_connections_active{{{ONE}}}))", "{{shard}}"),),
            "The same, as bars, the longest first.",
            "Long-lived connections keep a difference for hours that a reload has made; steering evens out new ones.",
            width=6,
        ),
        Panel(
            "Share of the next connections",
            Kind.LINES,
            "percentunit",
            (Query(f"sum by (shard) (shardnet_steering_share_ratio{{{ONE}}})", "{{shard}}"),),
            "Which part of the connections to come each shard is to get.",
            "With `--steering least` a full shard gets less. All alike: nothing steers, or all are equal.",
            width=6,
        ),
    ),
)

WORK = Row(
    "Work",
    (
        Panel(
            "Completions per shard",
            Kind.LINES,
            "ops",
            (Query(rate("shardnet_completions_total", by="shard"), "{{shard}}"),),
            "Operations that completed in a second, by shard.",
            "Fair connections and unfair work: a few clients ask much. They stay where they are until they reconnect.",
        ),
        Panel(
            "Loop use per shard",
            Kind.SHARDS_HEAT,
            "percentunit",
            (Query(f"max by (shard) ({BUSY})", "{{shard}}"),),
            "The part of the time that each loop was at work.",
            "Red rows are full: their clients wait for each other. See the turn durations of that shard.",
            top=1.0,
        ),
        Panel(
            "Loop lag, p99",
            Kind.LINES,
            "s",
            (Query(quantile(0.99, "shardnet_loop_lag_seconds", "shard"), "{{shard}}"),),
            "How late a timer would be run, 99 times of 100, by shard.",
            "`slow turn` in the log says which handler holds the loop, and where.",
            warn=0.05,
        ),
        Panel(
            "Loop lag",
            Kind.BUCKETS_HEAT,
            "s",
            (Query(f"sum by (le) (increase(shardnet_loop_lag_seconds_bucket{{{ONE}}}{RATE}))", "{{le}}"),),
            "How often timers would have been how late.",
            "A second band above the first one is something regular: a garbage collection, a periodic task.",
        ),
        Panel(
            "Turn duration, p99",
            Kind.LINES,
            "s",
            (Query(quantile(0.99, "shardnet_loop_turn_duration_seconds", "shard"), "{{shard}}"),),
            "How long a loop is at work between two waits for events, 99 times of 100.",
            "Long turns are large batches (see Completions) or slow handlers (see Slow turns).",
        ),
        Panel(
            "Slow turns",
            Kind.LINES,
            "ops",
            (Query(rate("shardnet_slow_turns_total", by="shard"), "{{shard}}"),),
            "Turns that took longer than `--slow-turn`.",
            "Each is in the log, with the handler and the line where it stood.",
        ),
    ),
)

LIFE = Row(
    "Life",
    (
        Panel(
            "Shard states",
            Kind.STATES,
            "none",
            (
                Query(
                    "max by (instance, shard) ("
                    + " or ".join(
                        f'shardnet_shard_state{{{ONE},state="{state}"}} * {number}'
                        for number, state in enumerate(("serving", "booting", "draining", "backoff"), start=1)
                    )
                    + ")",
                    "{{instance}} {{shard}}",
                ),
            ),
            "What each shard was doing: serving, booting, draining, or waiting to be tried again (backoff).",
            "backoff: its workers end as soon as they start, and the log says why.",
            width=12,
        ),
        Panel(
            "Uptime of workers",
            Kind.TABLE,
            "s",
            (Query(f"time() - shardnet_shard_start_time_seconds{{{ONE}}}"),),
            "For how long each shard has had its worker.",
            "One that is much younger than the others was replaced: see Reliability.",
            width=6,
        ),
        Panel(
            "Silence of loops",
            Kind.LINES,
            "s",
            (Query(f"time() - shardnet_shard_heartbeat_timestamp_seconds{{{ONE}}}", "{{shard}}"),),
            "How long ago each loop last turned. An idle one turns every five seconds.",
            "Above 10 s it is stuck: `shardnet stacks SHARD` says where; `--hang-timeout` replaces it.",
            width=6,
            warn=10,
            alarm=30,
        ),
    ),
)

SYSTEM = Row(
    "Kernel and processes",
    (
        Panel(
            "Accept queue",
            Kind.LINES,
            "short",
            (Query(f"sum by (shard) (shardnet_accept_queue_depth{{{ONE}}})", "{{shard}}"),),
            "Connections that wait in the kernel to be accepted, by shard.",
            "Always some in one shard: its loop is full, or nobody reads there.",
        ),
        LISTEN_DROPS,
        Panel(
            "Memory",
            Kind.STACK,
            "bytes",
            (Query(f"sum by (shard) (shardnet_process_proportional_memory_bytes{{{ONE}}})", "{{shard}}"),),
            "Memory of each shard's processes, shared pages in proportion, so that they add up.",
            "Growing with steady connections: the app keeps something; `--worker-max-memory` bounds it.",
        ),
        Panel(
            "CPU per shard",
            Kind.LINES,
            "none",
            (Query(f"sum by (shard) (rate(shardnet_process_cpu_seconds_total{{{ONE}}}{RATE}))", "{{shard}}"),),
            "CPUs that each shard's processes used.",
            "Less than its loop use: the handlers block (files, name lookups, locks), or the machine is overbooked.",
        ),
        Panel(
            "Context switches",
            Kind.LINES,
            "ops",
            (
                Query(
                    f"sum by (kind) (rate(shardnet_process_context_switches_total{{{ONE}}}{RATE}))",
                    "{{kind}}",
                ),
            ),
            "How often processes gave up their CPU, and how often it was taken from them.",
            "Many involuntary ones: more processes want to run than there are CPUs.",
        ),
        Panel(
            "Garbage collection",
            Kind.LINES,
            "percentunit",
            (
                Query(f"sum by (shard) (rate(shardnet_gc_pause_seconds_total{{{ONE}}}{RATE}))", "time {{shard}}"),
                Query(
                    f'sum(rate(shardnet_gc_collections_total{{{ONE},generation="2"}}{RATE}))', "full collections in 1 s"
                ),
            ),
            "The part of the time that each shard spends in collections.",
            "More than a few percent: the app makes many objects that refer to each other. `gc.freeze` what stays.",
        ),
    ),
)

EACH = Row(
    "Shard $shard",
    (
        Panel(
            "Connections",
            Kind.LINES,
            "short",
            (Query(f"sum by (listener) (shardnet_connections_active{{{ONE}}})", "{{listener}}"),),
            "Open connections of this shard, by address.",
            "See Connections per shard.",
            width=6,
            height=6,
        ),
        Panel(
            "Loop use",
            Kind.LINES,
            "percentunit",
            (Query(f"max({BUSY})", "use"),),
            "The part of the time that this loop was at work.",
            "See Loop use per shard.",
            width=6,
            height=6,
            top=1.0,
        ),
        Panel(
            "Loop lag, p99",
            Kind.LINES,
            "s",
            (Query(quantile(0.99, "shardnet_loop_lag_seconds"), "p99"),),
            "How late a timer would be run in this shard.",
            "See Loop lag, p99.",
            width=6,
            height=6,
        ),
        Panel(
            "Swap buffer",
            Kind.LINES,
            "bytes",
            (
                Query(f"sum(shardnet_swap_buffer_in_use_bytes{{{ONE}}})", "in use"),
                Query(f"sum(shardnet_swap_buffer_in_use_peak_bytes{{{ONE}}})", "peak"),
            ),
            "What batches of reads take of this shard's swap buffer.",
            "See Buffers.",
            width=6,
            height=6,
        ),
    ),
    each_shard=True,
)

DASHBOARD = Dashboard(
    "shardnet-shards",
    "shardnet / Shards",
    "Per shard: how many connections, whether that is fair, and what each loop, queue and process is at.",
    (BALANCE, WORK, LIFE, SYSTEM, EACH),
)
