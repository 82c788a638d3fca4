#!/bin/sh
# Puts a real Prometheus, and its promtool, into .tools/ for the tests. Says in one line what it did.
set -u
what=prometheus
. "$(dirname "$0")/debian.sh"

if [ -x "$tools/usr/bin/prometheus" ] && [ -x "$tools/usr/bin/promtool" ]; then
    echo "prometheus: already in $tools"
    exit 0
fi
if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
    echo "prometheus: already on PATH"
    exit 0
fi
unpack prometheus
unpacked/usr/bin/prometheus --version >log 2>&1 || give_up "it does not run here: $(tail -n 1 log)"
rm -rf "$tools/usr" && mv unpacked/usr "$tools/usr" || give_up "cannot write $tools"
echo "prometheus: $(echo prometheus_*.deb) unpacked to $tools"
