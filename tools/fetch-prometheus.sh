#!/bin/sh
# Puts a real Prometheus, and its promtool, into .tools/ for the tests: Debian's package, unpacked, not installed, so
# that no daemon starts and nothing outside the repository changes. Root is needed only where apt has no lists yet.
# Says in one line what it did. Where it cannot, that is no error: the tests that want Prometheus are then skipped.
set -u

tools=$(cd "$(dirname "$0")/.." && pwd)/.tools

give_up() {
    echo "prometheus: not fetched: $1; its tests will be skipped" >&2
    exit 0
}

if [ -x "$tools/usr/bin/prometheus" ] && [ -x "$tools/usr/bin/promtool" ]; then
    echo "prometheus: already in $tools"
    exit 0
fi
if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
    echo "prometheus: already on PATH"
    exit 0
fi
for command in apt-get apt-cache dpkg; do
    command -v "$command" >/dev/null || give_up "no $command here, this is not Debian"
done

# Fetched beside its place and then moved, so that half a package is never taken for a whole one.
mkdir -p "$tools" && work=$(mktemp -d "$tools/fetch.XXXXXX") || give_up "cannot write $tools"
trap 'rm -rf "$work"' EXIT
cd "$work" || give_up "cannot enter $work"

if ! apt-cache policy prometheus 2>/dev/null | grep -q 'Candidate: [^(]'; then
    [ "$(id -u)" -eq 0 ] || give_up "apt knows no prometheus (as root: apt-get update)"
    apt-get update >log 2>&1 || give_up "apt-get update: $(tail -n 1 log)"
fi
apt-get download prometheus >log 2>&1 || give_up "apt-get download: $(tail -n 1 log)"
dpkg -x prometheus_*.deb unpacked >log 2>&1 || give_up "dpkg: $(tail -n 1 log)"
unpacked/usr/bin/prometheus --version >log 2>&1 || give_up "it does not run here: $(tail -n 1 log)"
rm -rf "$tools/usr" && mv unpacked/usr "$tools/usr" || give_up "cannot write $tools"
echo "prometheus: $(echo prometheus_*.deb) unpacked to $tools"
