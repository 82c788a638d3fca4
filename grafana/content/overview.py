"""The overview: is it well, what goes through it, and what is near its limit."""

from __future__ import annotations

from grafana.content.shared import (
    ACCEPT_FILL,
    COMPLETIONS,
    CONNECTIONS,
    LAG,
    LIMIT_FILL,
    LOOP_USE,
    SERVING,
    imbalance,
)
from grafana.plan import ALL, RATE, Dashboard, Kind, Panel, Query, Row, rate

FAILED = ',outcome=~"error|reset"'
ACTIVE = f"sum by (job, instance, shard) (shardnet_connections_active{{{ALL}}})"

NOW = Row(
    "Now",
    (
        SERVING,
        CONNECTIONS,
        COMPLETIONS,
        Panel(
            "Failed",
            Kind.STAT,
            "percentunit",
            (
                Query(
                    f"{rate('shardnet_completions_total', ALL, more=FAILED)}"
                    f" / clamp_min({rate('shardnet_completions_total', ALL)}, 1)"
                ),
            ),
            "The part of the completions that were errors or resets.",
            "Completions shows which operation. Resets of reads are clients that left without a word.",
            width=4,
            height=4,
            warn=0.01,
            alarm=0.05,
        ),
        LAG,
        Panel(
            "Busiest shard, of the mean",
            Kind.STAT,
            "none",
            (Query(f"max({imbalance(ACTIVE)})"),),
            "How many times the mean number of connections the shard with the most has.",
            "Above 2 with many connections: few clients, or a balancer that reuses ports; try `--steering least`.",
            width=4,
            height=4,
            warn=1.5,
            alarm=2.0,
            decimals=2,
        ),
    ),
)

TRAFFIC = Row(
    "Traffic",
    (
        Panel(
            "Completions by operation",
            Kind.STACK,
            "ops",
            (Query(rate("shardnet_completions_total", ALL, by="op"), "{{op}}"),),
            "Operations that completed, by kind.",
            "Reads and writes go together in request and reply; more writes are a push, more timers deadlines.",
        ),
        Panel(
            "Failed completions",
            Kind.LINES,
            "ops",
            (
                Query(
                    rate("shardnet_completions_total", ALL, by="outcome", more=',outcome=~"error|reset|deadline"'),
                    "{{outcome}}",
                ),
            ),
            "Completions that were no success, by outcome. The end of a stream is none of them.",
            "Completions shows of which operations. error of accept: out of files or memory. reset: peers left.",
        ),
        Panel(
            "Throughput",
            Kind.LINES,
            "Bps",
            (
                Query(rate("shardnet_received_bytes_total", ALL), "received"),
                Query(rate("shardnet_sent_bytes_total", ALL), "sent", mirrored=True),
            ),
            "Bytes received, upwards, and sent, downwards.",
            "Flat at the speed of the network card: that is the limit, not the server.",
        ),
    ),
)

CONNECTING = Row(
    "Connections",
    (
        Panel(
            "Connections of each instance",
            Kind.LINES,
            "short",
            (Query(f"sum by (instance) (shardnet_connections_active{{{ALL}}})", "{{instance}}"),),
            "Open connections, by server.",
            "One that loses them while others gain was taken out, or drains. All at once: the network, or a client.",
        ),
        Panel(
            "Accepted and closed",
            Kind.LINES,
            "cps",
            (
                Query(rate("shardnet_connections_accepted_total", ALL), "accepted"),
                Query(rate("shardnet_connections_closed_total", ALL), "closed", mirrored=True),
            ),
            "Connections that came, upwards, and went, downwards.",
            "Both high with few open: clients do not keep their connections, and each costs far more than a message.",
        ),
        Panel(
            "Closed by reason",
            Kind.STACK,
            "cps",
            (Query(rate("shardnet_connections_closed_total", ALL, by="reason"), "{{reason}}"),),
            "Why connections ended: the peer (eof, reset), the handler (local), a deadline, an error, a drain.",
            "deadline and error deserve a look at the log; drain comes with reloads.",
        ),
    ),
)

LIMITS = Row(
    "Near the limit?",
    (
        LOOP_USE,
        LIMIT_FILL,
        ACCEPT_FILL,
        Panel(
            "Swap buffer, fullest",
            Kind.LINES,
            "percentunit",
            (
                Query(
                    f"max by (instance) (shardnet_swap_buffer_in_use_peak_bytes{{{ALL}}}"
                    f" / shardnet_swap_buffer_capacity_bytes{{{ALL}}})",
                    "{{instance}}",
                ),
            ),
            "The most that a batch of reads has taken of a worker's swap buffer since it started.",
            "At 100 % batches are cut short: nothing is lost, turns get smaller. See Buffers; raise `--swap-size`.",
            warn=0.9,
            top=1.0,
        ),
        Panel(
            "Files, fullest",
            Kind.LINES,
            "percentunit",
            (
                Query(
                    f"max by (instance) (shardnet_process_open_fds{{{ALL}}} / shardnet_process_max_fds{{{ALL}}})",
                    "{{instance}}",
                ),
            ),
            "Open files of what a process may have, in the process where that is worst.",
            "Raise the limit (LimitNOFILE=, ulimit -Hn). Growing with steady connections: the app leaks files.",
            warn=0.8,
            alarm=0.95,
            top=1.0,
        ),
        Panel(
            "CPU",
            Kind.STACK,
            "none",
            (Query(f"sum by (mode) (rate(shardnet_process_cpu_seconds_total{{{ALL}}}{RATE}))", "{{mode}}"),),
            "CPUs that all processes of the server used, in the app and in the kernel.",
            "As many as the machine has: add machines. Much less with busy loops: handlers wait in blocking calls.",
        ),
    ),
)

DASHBOARD = Dashboard(
    "shardnet-overview",
    "shardnet / Overview",
    "Is it well, what goes through it, and what is near its limit.",
    (NOW, TRAFFIC, CONNECTING, LIMITS),
)
