"""Completions: how many, whether it is fair over shards, how near the limit; their outcomes, batches and latency."""

from __future__ import annotations

from grafana.content.shared import BUSY, COMPLETIONS, DEADLINES, EXCEPTIONS, imbalance
from grafana.plan import ONE, RATE, Dashboard, Kind, Panel, Query, Row, quantile, rate

EACH = f"sum by (job, instance, shard) (rate(shardnet_completions_total{{{ONE}}}{RATE}))"

SCREEN = Row(
    "How many, how fair, how near the limit",
    (
        COMPLETIONS,
        Panel(
            "Busiest, of the mean",
            Kind.STAT,
            "none",
            (Query(f"max({imbalance(EACH)})"),),
            "How many times the mean number of completions the busiest shard has.",
            "Far above that of connections: a few clients ask much, and share a shard.",
            width=4,
            height=4,
            warn=2.0,
            alarm=4.0,
            decimals=2,
        ),
        Panel(
            "Loop use, busiest",
            Kind.STAT,
            "percentunit",
            (Query(f"max({BUSY})"),),
            "The part of the time that the busiest loop is at work: near 100 %, no more completions are to be had.",
            "Add shards while there are CPUs, then machines.",
            width=4,
            height=4,
            warn=0.7,
            alarm=0.9,
        ),
        Panel(
            "Per turn",
            Kind.STAT,
            "none",
            (
                Query(
                    f"{rate('shardnet_completions_total')} / clamp_min({rate('shardnet_loop_turns_total')}, 1)",
                ),
            ),
            "Completions that a turn of the loop brings, in the mean: the more, the less each costs.",
            "Near 1 the loop turns for each message, as with few busy connections; that is fine.",
            width=4,
            height=4,
            decimals=1,
        ),
        Panel(
            "Pending writes",
            Kind.STAT,
            "short",
            (Query(f'sum(shardnet_operations_pending{{{ONE},op="write"}})'),),
            "Writes that wait for their peers to read.",
            "Many: slow peers. See Buffers, backpressure.",
            width=4,
            height=4,
            decimals=0,
        ),
        Panel(
            "Latency, p99",
            Kind.STAT,
            "s",
            (Query(quantile(0.99, "shardnet_completion_latency_seconds")),),
            "From when the kernel told of bytes until their handler was called.",
            "Long: large batches, or slow handlers that ran before.",
            width=4,
            height=4,
            warn=0.01,
            alarm=0.1,
        ),
        Panel(
            "By operation and outcome",
            Kind.STACK,
            "ops",
            (Query(rate("shardnet_completions_total", by="op, outcome") + " > 0", "{{op}} {{outcome}}"),),
            "Every completion: what was asked, and what came of it.",
            "cancelled reads are connections that were closed while they waited; reset and error are for the log.",
            width=12,
        ),
        Panel(
            "Per shard",
            Kind.SHARDS_HEAT,
            "ops",
            (Query(rate("shardnet_completions_total", by="shard"), "{{shard}}"),),
            "Each row is a shard; the brighter, the more completions.",
            "Compare with connections per shard: connections may be fair, and work not.",
            width=12,
        ),
    ),
)

DETAIL = Row(
    "Batches and latency",
    (
        Panel(
            "Batch size",
            Kind.BUCKETS_HEAT,
            "short",
            (Query(f"sum by (le) (increase(shardnet_completion_batch_size_bucket{{{ONE}}}{RATE}))", "{{le}}"),),
            "How many reads complete together. A batch has at most 256.",
            "At 256 much of the time, the loop is always behind: see Loop use.",
        ),
        Panel(
            "Latency",
            Kind.LINES,
            "s",
            tuple(Query(quantile(q, "shardnet_completion_latency_seconds"), f"p{q * 100:g}") for q in (0.5, 0.9, 0.99)),
            "From when the kernel told of bytes until their handler was called, of every 64th read.",
            "p99 far above p50: some handlers take long, and the others wait behind them.",
        ),
        Panel(
            "Pending operations",
            Kind.LINES,
            "short",
            (Query(f"sum by (op) (shardnet_operations_pending{{{ONE}}})", "{{op}}"),),
            "Operations that were asked for and have not completed. Idle connections wait in a read.",
            "Writes: see Buffers. Timers: deadlines that are armed.",
        ),
        Panel(
            "Turns",
            Kind.LINES,
            "ops",
            (Query(rate("shardnet_loop_turns_total", by="shard"), "{{shard}}"),),
            "How often each loop waits for events.",
            "Fewer with more work is good: batches grow.",
        ),
        DEADLINES,
        EXCEPTIONS,
    ),
)

DASHBOARD = Dashboard(
    "shardnet-completions",
    "shardnet / Completions",
    "How many operations complete, whether that is fair over shards, how near the limit, and what came of them.",
    (SCREEN, DETAIL),
)
