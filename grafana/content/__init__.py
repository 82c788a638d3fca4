"""What each dashboard asks. One module each; `shared` has the panels that several show."""

from grafana.content import buffers, completions, overview, reliability, shards

DASHBOARDS = (
    overview.DASHBOARD,
    shards.DASHBOARD,
    completions.DASHBOARD,
    buffers.DASHBOARD,
    reliability.DASHBOARD,
)

__all__ = ["DASHBOARDS"]
