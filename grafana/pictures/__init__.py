"""Pictures of the dashboards, with live figures, drawn by Grafana's own components: `make pictures`.

`__main__` runs a server, load and Prometheus, and takes what the panels ask for; `app.tsx` draws it in a browser
without a window.
"""
