#!/bin/sh
# Puts CPython's own tests of asyncio into .tools/, for an interpreter (the argument) that came without them: those that
# Debian packs apart, unpacked, not installed. Root is needed only where apt has no lists yet.
# Says in one line what it did. Where it cannot, that is no error: the tests that want them are then skipped.
set -u

python=${1:-python3}
tools=$(cd "$(dirname "$0")/.." && pwd)/.tools

give_up() {
    echo "python tests: not fetched: $1; the tests that import them will be skipped" >&2
    exit 0
}

version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])' 2>/dev/null) || give_up "$python does not run"
if "$python" -c 'import test.test_asyncio' 2>/dev/null; then
    echo "python tests: already with $python"
    exit 0
fi
if [ -d "$tools/$version/test/test_asyncio" ]; then
    echo "python tests: already in $tools"
    exit 0
fi
package=lib$version-testsuite
for command in apt-get apt-cache dpkg; do
    command -v "$command" >/dev/null || give_up "no $command here, this is not Debian"
done

# Fetched beside its place and then moved, so that half a package is never taken for a whole one.
mkdir -p "$tools" && work=$(mktemp -d "$tools/fetch.XXXXXX") || give_up "cannot write $tools"
trap 'rm -rf "$work"' EXIT
cd "$work" || give_up "cannot enter $work"

if ! apt-cache policy "$package" 2>/dev/null | grep -q 'Candidate: [^(]'; then
    [ "$(id -u)" -eq 0 ] || give_up "apt knows no $package (as root: apt-get update)"
    apt-get update >log 2>&1 || give_up "apt-get update: $(tail -n 1 log)"
fi
apt-get download "$package" >log 2>&1 || give_up "apt-get download: $(grep '^E:' log | tail -n 1)"
dpkg -x "$package"_*.deb unpacked >log 2>&1 || give_up "dpkg: $(tail -n 1 log)"
[ -d "unpacked/usr/lib/$version/test/test_asyncio" ] || give_up "$package has no test_asyncio"
mkdir -p "$tools/$version" && mv "unpacked/usr/lib/$version/test" "$tools/$version/test" || give_up "cannot write $tools"
echo "python tests: $(echo "$package"_*.deb) unpacked to $tools"
