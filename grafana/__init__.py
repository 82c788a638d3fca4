"""The Grafana dashboards: what they show, and the script that writes them.

`python -m grafana` (`make dashboards`) writes `dashboards/*.json`. `plan` is what a panel is, `content` has the panels
of each dashboard, and `rendering` makes Grafana's JSON of them.
"""
