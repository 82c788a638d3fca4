"""Takes the pictures: `python -m grafana.pictures`, or `make pictures`.

A real server under a load that changes, a real Prometheus; then each query of the panels that are shown, and a browser.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

PROJECT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = Path(__file__).resolve().parent
PICTURES: Final = PROJECT / "docs" / "img"
TOOLS: Final = PROJECT / ".tools"

# Which dashboard, and how many of Grafana's rows of it.
SHOWN: Final = {"overview": 23, "shards": 13, "completions": 22, "buffers": 22}
ROW_PX: Final = 38
WIDTH_PX: Final = 24 * 58
STEP_S: Final = 2
WINDOW_S: Final = 110
VALUES: Final = {"$job": ".+", "$instance": ".+", "$shard": ".+", "$__rate_interval": "8s"}
# Connections, messages per second, and for how long from when: they overlap, so that there is something to see.
LOADS: Final = ((200, 3000, 115, 0), (120, 9000, 45, 25), (60, 15000, 30, 60), (400, 2000, 40, 70))
CONFIGURATION: Final = """\
global: {{scrape_interval: 2s, scrape_timeout: 2s}}
scrape_configs:
  - job_name: shardnet
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


def program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=TOOLS) or shutil.which(name, path=TOOLS / "usr/bin")
    if found is None:
        raise SystemExit(f"pictures: no {name} on PATH or in .tools: tools/fetch-{name}.sh fetches it")
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextmanager
def running(*command: str, cwd: Path = PROJECT) -> Iterator[None]:
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def wait_for(url: str) -> None:
    until_s = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.2)


def ask(base: str, expr: str, start: float, end: float) -> list[dict[str, Any]]:
    for variable, value in VALUES.items():
        expr = expr.replace(variable, value)
    parameters = urllib.parse.urlencode({"query": expr, "start": start, "end": end, "step": STEP_S})
    with urllib.request.urlopen(f"{base}/api/v1/query_range?{parameters}", timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found


def work(address: str) -> None:
    """Put changing load on the server."""
    begun_s = time.monotonic()
    with ExitStack() as stack:
        for connections, rate, seconds, after_s in LOADS:
            time.sleep(max(0.0, begun_s + after_s - time.monotonic()))
            command = [sys.executable, "-m", "shardnet", "bench", address, "--json", "--warmup", "0"]
            command += ["--connections", str(connections), "--rate", str(rate), "--duration", str(seconds)]
            print(f"pictures: {connections} connections, {rate} messages/s for {seconds} s", file=sys.stderr)
            stack.enter_context(running(*command))
        time.sleep(max(0.0, begun_s + WINDOW_S - time.monotonic()))


def collect(base: str, end: float) -> dict[str, dict[str, Any]]:
    """For each dashboard, what its panels get to show."""
    pictures = {}
    for name, height in SHOWN.items():
        dashboard = json.loads((PROJECT / "grafana" / "dashboards" / f"shardnet-{name}.json").read_text())
        answers = {
            f"{panel['id']}.{number}": ask(base, target["expr"], end - WINDOW_S, end)
            for panel in dashboard["panels"]
            if panel["type"] != "row" and panel["gridPos"]["y"] + panel["gridPos"]["h"] <= height
            for number, target in enumerate(panel["targets"])
        }
        pictures[name] = {
            "dashboard": dashboard, "answers": answers, "from": end - WINDOW_S, "to": end, "height": height,
        }  # fmt: skip
    return pictures


def draw(pictures: dict[str, dict[str, Any]]) -> None:
    """A page for each, and its picture."""
    out = FOLDER / "out"
    chromium = program("chromium")
    PICTURES.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        page = out / f"{name}.html"
        style = "" if not (out / "app.css").exists() else '<link rel="stylesheet" href="app.css">'
        page.write_text(
            f"<!doctype html><meta charset=utf-8>{style}<style>body{{margin:0;background:#111217}}</style>"
            f"<div id=root></div><script>window.PICTURE={json.dumps(picture)}</script><script src=app.js></script>"
        )
        target = PICTURES / f"{name}.png"
        with TemporaryDirectory() as profile:
            subprocess.run(
                [
                    chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                    f"--user-data-dir={profile}", f"--window-size={WIDTH_PX},{SHOWN[name] * ROW_PX}",
                    "--virtual-time-budget=12000", f"--screenshot={target}", page.as_uri(),
                ],
                check=True, capture_output=True, timeout=120, env={**os.environ, "HOME": profile},
            )  # fmt: skip
        print(f"pictures: {target.relative_to(PROJECT)}, {target.stat().st_size >> 10} KiB", file=sys.stderr)


def main() -> None:
    prometheus, npm = program("prometheus"), program("npm")
    program("chromium")
    subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=FOLDER, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([npm, "run", "--silent", "build"], cwd=FOLDER, check=True)
    port, metrics, own = free_port(), free_port(), free_port()
    serve = [sys.executable, "-m", "shardnet", "run", "examples.echo:handler", "--workers", "4"]
    serve += ["--bind", f"127.0.0.1:{port}", "--metrics-bind", f"127.0.0.1:{metrics}"]
    with TemporaryDirectory() as folder, running(*serve):
        (Path(folder) / "prometheus.yml").write_text(CONFIGURATION.format(port=metrics))
        watch = [prometheus, "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        with running(*watch, f"--web.listen-address=127.0.0.1:{own}", cwd=Path(folder)):
            wait_for(f"http://127.0.0.1:{metrics}/livez")
            wait_for(f"http://127.0.0.1:{own}/-/ready")
            work(f"127.0.0.1:{port}")
            pictures = collect(f"http://127.0.0.1:{own}", time.time())
    draw(pictures)


if __name__ == "__main__":
    main()
