"""Every metric of shardnet's own: name, kind, labels and their values, and what it means.

Lives here: the metrics. Must not live here: who counts when, where the cells are (see `cells`), and anything about one
protocol or format.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from shardnet.board import Kind, Metric

OPS: Final = ("read", "write", "accept", "connect", "timer")
OUTCOMES: Final = ("ok", "eof", "cancelled", "deadline", "reset", "error")
CLOSE_REASONS: Final = ("eof", "local", "reset", "deadline", "error", "drain")
SHARD_STATES: Final = ("booting", "serving", "draining", "backoff")
# The first three: nobody asked the worker to end. Of the others, the successor serves first.
RESTART_REASONS: Final = ("crash", "signal", "hang", "memory", "lifetime", "asked", "reload")
UNASKED_REASONS: Final = RESTART_REASONS[:3]
RELOAD_OUTCOMES: Final = ("ok", "failed")
PENDING_OPS: Final = ("read", "write", "timer")
PAUSE_REASONS: Final = ("limit", "files")
DEADLINE_KINDS: Final = ("write_stall", "linger", "drain")
GC_GENERATIONS: Final = ("0", "1", "2")
CPU_MODES: Final = ("user", "system")
SWITCH_KINDS: Final = ("voluntary", "involuntary")

# Of times inside a loop, from far less than a message takes to a stall that everybody notices.
LOOP_BUCKETS_S: Final = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
BATCH_BUCKETS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
DURATION_BUCKETS_S: Final = (0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0, 86400.0)

# A worker's: the engine's, in the engine's order.
COMPLETIONS: Final = Metric(
    "shardnet_completions_total",
    Kind.COUNTER,
    "Completions delivered, by operation and outcome.",
    ("op", "outcome"),
)
LOOP_TURNS: Final = Metric("shardnet_loop_turns_total", Kind.COUNTER, "Loop turns.")
SWAP_IN_USE: Final = Metric(
    "shardnet_swap_buffer_in_use_bytes", Kind.GAUGE, "Bytes that the last batch of reads took of the swap buffer."
)
SWAP_IN_USE_PEAK: Final = Metric(
    "shardnet_swap_buffer_in_use_peak_bytes",
    Kind.GAUGE,
    "The most that a batch of reads has taken of the swap buffer since the worker started.",
)
SWAP_CAPACITY: Final = Metric("shardnet_swap_buffer_capacity_bytes", Kind.GAUGE, "Size of the swap buffer.")
SWAP_EXHAUSTED: Final = Metric(
    "shardnet_swap_buffer_exhausted_total",
    Kind.COUNTER,
    "Batches of reads cut short because the swap buffer was full.",
)
SWAP_SPILL: Final = Metric(
    "shardnet_swap_buffer_spill_bytes_total",
    Kind.COUNTER,
    "Bytes received past the swap buffer, into memory of their own: by handlers that read on without waiting.",
)
PENDING: Final = Metric(
    "shardnet_operations_pending", Kind.GAUGE, "Operations that were asked for and have not completed.", ("op",)
)
SEND_QUEUE: Final = Metric(
    "shardnet_send_queue_bytes", Kind.GAUGE, "Bytes that handlers have sent and the kernel has not taken yet."
)
CONNECTIONS_PAUSED: Final = Metric(
    "shardnet_connections_paused",
    Kind.GAUGE,
    "Connections whose peers have not taken all that was sent to them yet.",
)
LOOP_BUSY: Final = Metric(
    "shardnet_loop_busy_seconds_total",
    Kind.COUNTER,
    "Time that the loop was at work and not waiting for events: its rate is the loop's utilisation.",
    cell="ns",
)
TURN_DURATION: Final = Metric(
    "shardnet_loop_turn_duration_seconds",
    Kind.HISTOGRAM,
    "How long the loop was at work between two waits for events.",
    cell="ns",
    buckets=LOOP_BUCKETS_S,
)
LOOP_LAG: Final = Metric(
    "shardnet_loop_lag_seconds",
    Kind.HISTOGRAM,
    "How late the loop would have run a timer: looked at for 100 moments of each second.",
    cell="ns",
    buckets=LOOP_BUCKETS_S,
)
BATCH_SIZE: Final = Metric(
    "shardnet_completion_batch_size",
    Kind.HISTOGRAM,
    "Reads that completed in one batch.",
    buckets=BATCH_BUCKETS,
)
COMPLETION_LATENCY: Final = Metric(
    "shardnet_completion_latency_seconds",
    Kind.HISTOGRAM,
    "From when the kernel told of bytes until their handler was called: of every 64th read.",
    cell="ns",
    buckets=LOOP_BUCKETS_S,
)

# A worker's, for each listener.
RECEIVED_BYTES: Final = Metric(
    "shardnet_received_bytes_total", Kind.COUNTER, "Bytes received from clients.", ("listener",)
)
SENT_BYTES: Final = Metric(
    "shardnet_sent_bytes_total", Kind.COUNTER, "Bytes handed to the kernel for clients.", ("listener",)
)
CONNECTIONS_ACTIVE: Final = Metric("shardnet_connections_active", Kind.GAUGE, "Open connections.", ("listener",))
CONNECTIONS_ACCEPTED: Final = Metric(
    "shardnet_connections_accepted_total", Kind.COUNTER, "Connections accepted.", ("listener",)
)
CONNECTIONS_CLOSED: Final = Metric(
    "shardnet_connections_closed_total",
    Kind.COUNTER,
    "Connections closed, by reason.",
    ("listener", "reason"),
)

# A worker's, once.
HANDLER_EXCEPTIONS: Final = Metric("shardnet_handler_exceptions_total", Kind.COUNTER, "Handlers that raised.")
CONNECTIONS_LIMIT: Final = Metric(
    "shardnet_connections_limit", Kind.GAUGE, "Open connections that the worker allows itself."
)
CONNECTION_DURATION: Final = Metric(
    "shardnet_connection_duration_seconds",
    Kind.HISTOGRAM,
    "How long connections lasted that are closed.",
    cell="ns",
    buckets=DURATION_BUCKETS_S,
)
ACCEPT_PAUSES: Final = Metric(
    "shardnet_accept_pauses_total",
    Kind.COUNTER,
    "Times that accepting paused: at the limit of connections, or because the system had no files or memory.",
    ("reason",),
)
DEADLINES_EXPIRED: Final = Metric(
    "shardnet_deadlines_expired_total",
    Kind.COUNTER,
    "Deadlines that ended a connection: the peer took no byte, did not end its stream, or the drain was over.",
    ("kind",),
)
SLOW_TURNS: Final = Metric(
    "shardnet_slow_turns_total", Kind.COUNTER, "Turns of the loop that took longer than --slow-turn: they are logged."
)
GC_COLLECTIONS: Final = Metric(
    "shardnet_gc_collections_total", Kind.COUNTER, "Garbage collections, by the oldest generation.", ("generation",)
)
GC_PAUSE: Final = Metric(
    "shardnet_gc_pause_seconds_total", Kind.COUNTER, "Time spent in garbage collections.", cell="ns"
)

# What the label `shard` of the process families says of those that serve no shard.
SUPERVISOR: Final = "supervisor"
EXPORTER: Final = "exporter"

# Of each process, written by the exporter when it is asked.
PROCESS_CPU: Final = Metric(
    "shardnet_process_cpu_seconds_total", Kind.COUNTER, "CPU time of the shard's processes.", ("mode",), "f64"
)
PROCESS_SWITCHES: Final = Metric(
    "shardnet_process_context_switches_total",
    Kind.COUNTER,
    "Context switches of the shard's processes: it gave the CPU up, or it was taken away.",
    ("kind",),
)
# The supervisor's row has them of those who serve no shard.
SERVER_CPU: Final = replace(PROCESS_CPU, labels=("shard", *PROCESS_CPU.labels))
SERVER_SWITCHES: Final = replace(PROCESS_SWITCHES, labels=("shard", *PROCESS_SWITCHES.labels))

# The supervisor's own.
SHARDS_CONFIGURED: Final = Metric("shardnet_shards_configured", Kind.GAUGE, "Shards that the supervisor keeps running.")
SUPERVISOR_START_TIME: Final = Metric(
    "shardnet_supervisor_start_time_seconds",
    Kind.GAUGE,
    "When the supervisor started, Unix time.",
    cell="f64",
)
LAME_DUCK: Final = Metric(
    "shardnet_lame_duck", Kind.GAUGE, "1 while the server says that it is not ready, and serves all the same."
)
GENERATION: Final = Metric("shardnet_generation", Kind.GAUGE, "The generation of workers now serving.")
RELOADS: Final = Metric(
    "shardnet_reloads_total",
    Kind.COUNTER,
    "New generations that were forked, by outcome: it serves, or it failed to come up and was discarded.",
    ("outcome",),
)
RELOAD_LAST_SUCCESSFUL: Final = Metric(
    "shardnet_reload_last_successful", Kind.GAUGE, "1 unless the last reload failed, and older code serves."
)
RELOAD_LAST_SUCCESS_TIME: Final = Metric(
    "shardnet_reload_last_success_timestamp_seconds",
    Kind.GAUGE,
    "When the code that serves was loaded, Unix time: at the last reload that succeeded, or at the start.",
    cell="f64",
)

# The supervisor's, for each shard.
SHARD_STATE: Final = Metric(
    "shardnet_shard_state", Kind.GAUGE, "1 for the state that the shard is in; none for a vacant one.", ("state",)
)
SHARD_RESTARTS: Final = Metric(
    "shardnet_shard_restarts_total", Kind.COUNTER, "Workers that were replaced, by reason.", ("reason",)
)
LISTENERS_LENT: Final = Metric(
    "shardnet_listeners_lent", Kind.GAUGE, "1 while a sibling accepts on the shard's listeners."
)
LISTENER_LOANS: Final = Metric(
    "shardnet_listener_loans_total", Kind.COUNTER, "Times that the shard's listeners were lent to a sibling."
)
STEERING_SHARE: Final = Metric(
    "shardnet_steering_share_ratio",
    Kind.GAUGE,
    "Which part of the next connections the shard is to get.",
    cell="f64",
)
ACCEPT_QUEUE_DEPTH: Final = Metric(
    "shardnet_accept_queue_depth", Kind.GAUGE, "Connections that wait in the kernel to be accepted.", ("listener",)
)
ACCEPT_QUEUE_CAPACITY: Final = Metric(
    "shardnet_accept_queue_capacity",
    Kind.GAUGE,
    "Connections that the kernel lets wait: the least of --backlog and net.core.somaxconn.",
    ("listener",),
)

# Worked out by the exporter when it is asked.
BUILD: Final = Metric(
    "shardnet_build_info",
    Kind.GAUGE,
    "1, with what is running: version, interpreter, and the watcher's engine.",
    ("version", "python", "engine"),
)
SHARD_START_TIME: Final = Metric(
    "shardnet_shard_start_time_seconds",
    Kind.GAUGE,
    "When the shard's youngest worker started, Unix time.",
    cell="f64",
)
SHARD_HEARTBEAT: Final = Metric(
    "shardnet_shard_heartbeat_timestamp_seconds",
    Kind.GAUGE,
    "When the shard's loop last turned, Unix time.",
    cell="f64",
)
LISTEN_OVERFLOWS: Final = Metric(
    "shardnet_host_listen_overflows_total",
    Kind.COUNTER,
    "Times that an accept queue was full: of all listeners in this network namespace.",
)
LISTEN_DROPS: Final = Metric(
    "shardnet_host_listen_drops_total",
    Kind.COUNTER,
    "Connections that the kernel dropped at a listener: of all in this network namespace.",
)
SCRAPE_DURATION: Final = Metric(
    "shardnet_scrape_duration_seconds", Kind.GAUGE, "How long the exporter took for the scrape before.", cell="f64"
)
PROCESS_RESIDENT: Final = Metric(
    "shardnet_process_resident_memory_bytes", Kind.GAUGE, "Memory of the shard's processes, shared pages in full."
)
PROCESS_PROPORTIONAL: Final = Metric(
    "shardnet_process_proportional_memory_bytes",
    Kind.GAUGE,
    "Memory of the shard's processes, shared pages in proportion: these can be added up.",
)
PROCESS_OPEN_FDS: Final = Metric(
    "shardnet_process_open_fds", Kind.GAUGE, "Open file descriptors of the shard's processes."
)
PROCESS_MAX_FDS: Final = Metric(
    "shardnet_process_max_fds", Kind.GAUGE, "File descriptors that a process of the shard may have open."
)
OF_ENGINE: Final = (
    COMPLETIONS,
    LOOP_TURNS,
    SWAP_IN_USE,
    SWAP_IN_USE_PEAK,
    SWAP_CAPACITY,
    SWAP_EXHAUSTED,
    SWAP_SPILL,
    PENDING,
    SEND_QUEUE,
    CONNECTIONS_PAUSED,
    LOOP_BUSY,
    TURN_DURATION,
    LOOP_LAG,
    BATCH_SIZE,
    COMPLETION_LATENCY,
)
OF_LISTENER: Final = (
    RECEIVED_BYTES,
    SENT_BYTES,
    CONNECTIONS_ACTIVE,
    CONNECTIONS_ACCEPTED,
    CONNECTIONS_CLOSED,
)
OF_WORKER: Final = (
    HANDLER_EXCEPTIONS,
    CONNECTIONS_LIMIT,
    CONNECTION_DURATION,
    ACCEPT_PAUSES,
    DEADLINES_EXPIRED,
    SLOW_TURNS,
    GC_COLLECTIONS,
    GC_PAUSE,
    PROCESS_CPU,
    PROCESS_SWITCHES,
)
OF_SUPERVISOR: Final = (
    SHARDS_CONFIGURED,
    SUPERVISOR_START_TIME,
    LAME_DUCK,
    GENERATION,
    RELOADS,
    RELOAD_LAST_SUCCESSFUL,
    RELOAD_LAST_SUCCESS_TIME,
    SERVER_CPU,
    SERVER_SWITCHES,
)
OF_SHARD: Final = (
    SHARD_STATE,
    SHARD_RESTARTS,
    LISTENERS_LENT,
    LISTENER_LOANS,
    STEERING_SHARE,
    ACCEPT_QUEUE_DEPTH,
    ACCEPT_QUEUE_CAPACITY,
)
OF_EXPORTER: Final = (BUILD, LISTEN_OVERFLOWS, LISTEN_DROPS, SCRAPE_DURATION)
OF_EXPORTER_BY_SHARD: Final = (
    SHARD_START_TIME,
    SHARD_HEARTBEAT,
    PROCESS_RESIDENT,
    PROCESS_PROPORTIONAL,
    PROCESS_OPEN_FDS,
    PROCESS_MAX_FDS,
)

WITH_SHARD: Final = (*OF_ENGINE, *OF_LISTENER, *OF_WORKER, *OF_SHARD, *OF_EXPORTER_BY_SHARD)
# Each once, in the order of `/metrics`.
EVERY: Final = (
    *WITH_SHARD,
    *(metric for metric in OF_SUPERVISOR if metric not in (SERVER_CPU, SERVER_SWITCHES)),
    *OF_EXPORTER,
)

# What a label may say, by metric and label; `listener` is an address of --bind, `shard` a number.
LABEL_VALUES: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    (COMPLETIONS.name, "op"): OPS,
    (COMPLETIONS.name, "outcome"): OUTCOMES,
    (PENDING.name, "op"): PENDING_OPS,
    (CONNECTIONS_CLOSED.name, "reason"): CLOSE_REASONS,
    (ACCEPT_PAUSES.name, "reason"): PAUSE_REASONS,
    (DEADLINES_EXPIRED.name, "kind"): DEADLINE_KINDS,
    (GC_COLLECTIONS.name, "generation"): GC_GENERATIONS,
    (RELOADS.name, "outcome"): RELOAD_OUTCOMES,
    (SHARD_STATE.name, "state"): SHARD_STATES,
    (SHARD_RESTARTS.name, "reason"): RESTART_REASONS,
    (PROCESS_CPU.name, "shard"): (SUPERVISOR, EXPORTER),
    (PROCESS_SWITCHES.name, "shard"): (SUPERVISOR, EXPORTER),
    (PROCESS_CPU.name, "mode"): CPU_MODES,
    (PROCESS_SWITCHES.name, "kind"): SWITCH_KINDS,
}
