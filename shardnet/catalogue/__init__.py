"""The catalogue: every metric of shardnet's own, what it means, and the cells that it is counted in.

`families` declares the metrics, `cells` where processes count them. `/metrics`, docs/metrics.md, the dashboards and the
alerts derive from it, or are held against it by tests.
"""
