"""Metrics of the app's own: counters, gauges and histograms, in the same `/metrics` as the server's.

    from shardnet.metrics import Counter, Histogram

    LOGINS = Counter("chat_logins_total", "Logins, by how they ended.", ["outcome"])
    ROOM_SIZE = Histogram("chat_room_size", "Members of a room when somebody joins.", buckets=(1, 2, 5, 10, 100))

    LOGINS.labels("ok").inc()
    ROOM_SIZE.observe(len(room))

They are declared at import, or later, and take the calls of prometheus_client. Each worker counts in its own row of
the board, so there is one series for each shard, with the label `shard`; what a worker has counted outlives it. Outside
of a server, in a test or a script, they count for nobody else.

`instruments` are what the app calls, `registry` is what has been declared and where it is counted.
"""

from shardnet.metrics.instruments import Counter, Gauge, Histogram

__all__ = ["Counter", "Gauge", "Histogram"]
