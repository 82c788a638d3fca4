"""Buffers: what the swap buffers hold, whether that is fair, how near the limit; and what waits for slow peers."""

from __future__ import annotations

from grafana.content.shared import DEADLINES
from grafana.plan import ONE, RATE, Dashboard, Kind, Panel, Query, Row, rate

PEAK = f"shardnet_swap_buffer_in_use_peak_bytes{{{ONE}}} / shardnet_swap_buffer_capacity_bytes{{{ONE}}}"
READS = ',op="read",outcome="ok"'
USE = f"shardnet_swap_buffer_in_use_bytes{{{ONE}}} / shardnet_swap_buffer_capacity_bytes{{{ONE}}}"

SWAP = Row(
    "Swap buffer: how much, how fair, how near the limit",
    (
        Panel(
            "In use",
            Kind.STAT,
            "bytes",
            (Query(f"sum(shardnet_swap_buffer_in_use_bytes{{{ONE}}})"),),
            "Bytes that the last batches of reads took, of all shards.",
            "It varies from batch to batch: the peak beside it says more.",
            width=4,
            height=4,
        ),
        Panel(
            "Peak, fullest shard",
            Kind.STAT,
            "percentunit",
            (Query(f"max({PEAK})"),),
            "The most that a batch has taken of a swap buffer since its worker started.",
            "At 100 % a batch was cut short at least once. See Exhausted for how often.",
            width=4,
            height=4,
            warn=0.9,
        ),
        Panel(
            "Exhausted",
            Kind.STAT,
            "ops",
            (Query(rate("shardnet_swap_buffer_exhausted_total")),),
            "Batches that were cut short in a second because the buffer was full. Nothing is lost: the rest follows.",
            "Often: raise `--swap-size`, so that a turn gets through more connections.",
            width=4,
            height=4,
            warn=1,
            alarm=100,
        ),
        Panel(
            "In use, peak, capacity",
            Kind.LINES,
            "bytes",
            (
                Query(f"sum(shardnet_swap_buffer_in_use_bytes{{{ONE}}})", "in use"),
                Query(f"sum(shardnet_swap_buffer_in_use_peak_bytes{{{ONE}}})", "peak"),
                Query(f"sum(shardnet_swap_buffer_capacity_bytes{{{ONE}}})", "capacity"),
            ),
            "The swap buffers of all shards: what the last batches took, the most ever, and what there is.",
            "Peak far below capacity: `--swap-size` could be smaller. At capacity: larger.",
            width=12,
            height=4,
        ),
        Panel(
            "Use per shard",
            Kind.SHARDS_HEAT,
            "percentunit",
            (Query(f"max by (shard) ({USE})", "{{shard}}"),),
            "Each row is a shard; the brighter, the fuller its last batch.",
            "One row alone: its clients send more at a time than the others'.",
            width=12,
            top=1.0,
        ),
        Panel(
            "Peak per shard",
            Kind.BARS,
            "percentunit",
            (Query(f"sort_desc(max by (shard) ({PEAK}))", "{{shard}}"),),
            "The most that a batch has taken, by shard.",
            "Equal bars are fair.",
            width=6,
            warn=0.9,
            top=1.0,
        ),
        Panel(
            "Exhausted per shard",
            Kind.LINES,
            "ops",
            (Query(rate("shardnet_swap_buffer_exhausted_total", by="shard"), "{{shard}}"),),
            "Batches that were cut short, by shard.",
            "Raise `--swap-size`.",
            width=6,
        ),
    ),
)

PRESSURE = Row(
    "Past the buffer, and backpressure",
    (
        Panel(
            "Spill",
            Kind.LINES,
            "Bps",
            (Query(rate("shardnet_swap_buffer_spill_bytes_total", by="shard"), "{{shard}}"),),
            "Bytes received into memory of their own: by handlers that read on without waiting.",
            "Much of the received bytes: handlers read large messages piece by piece; that is as it should be.",
        ),
        Panel(
            "Unsent bytes",
            Kind.STACK,
            "bytes",
            (Query(f"sum by (shard) (shardnet_send_queue_bytes{{{ONE}}})", "{{shard}}"),),
            "What handlers have sent and peers have not taken. It is the server's memory.",
            "Growing: peers read too slowly. `await conn.drain()`, `--write-limit` and `--write-stall` bound it.",
        ),
        Panel(
            "Paused connections",
            Kind.LINES,
            "short",
            (Query(f"sum by (shard) (shardnet_connections_paused{{{ONE}}})", "{{shard}}"),),
            "Connections whose peers have not taken all that was sent to them.",
            "Some are always there. Many: a burst to everybody, or a network that is full.",
        ),
        Panel(
            "Bytes of a read",
            Kind.LINES,
            "bytes",
            (
                Query(
                    f"{rate('shardnet_received_bytes_total', by='shard')} / clamp_min("
                    f"{rate('shardnet_completions_total', by='shard', more=READS)}, 1)",
                    "{{shard}}",
                ),
            ),
            "How many bytes a read brings, in the mean.",
            "Times the size of a batch, that is what the swap buffer has to hold.",
        ),
        DEADLINES,
        Panel(
            "Time that connections lasted",
            Kind.BUCKETS_HEAT,
            "s",
            (Query(f"sum by (le) (increase(shardnet_connection_duration_seconds_bucket{{{ONE}}}{RATE}))", "{{le}}"),),
            "How long connections lasted that were closed.",
            "Many short ones: clients do not keep their connections.",
        ),
    ),
)

DASHBOARD = Dashboard(
    "shardnet-buffers",
    "shardnet / Buffers",
    "What the swap buffers hold, whether that is fair over shards, how near the limit, and what waits for slow peers.",
    (SWAP, PRESSURE),
)
