# For the scripts beside it, which source it: brings Debian's packages into .tools/, unpacked, not installed, so that no
# daemon starts and nothing outside the repository changes. Root is needed only where apt has no lists yet.
# Where something cannot be had, that is no error: `give_up` says so in one line, and the tests that want it are skipped.
# The script sets `what` (the name that its lines begin with).

tools=$(cd "$(dirname "$0")/.." && pwd)/.tools

give_up() {
    echo "$what: not fetched: $1; the tests that want it will be skipped" >&2
    exit 0
}

# unpack PACKAGE...: into ./unpacked, in a folder that is removed in the end. What is wanted is then moved to its place,
# so that half a package is never taken for a whole one.
unpack() {
    for command in apt-get apt-cache dpkg; do
        command -v "$command" >/dev/null || give_up "no $command here, this is not Debian"
    done
    mkdir -p "$tools" && work=$(mktemp -d "$tools/fetch.XXXXXX") || give_up "cannot write $tools"
    trap 'rm -rf "$work"' EXIT
    cd "$work" || give_up "cannot enter $work"
    for package in "$@"; do
        if ! apt-cache policy "$package" 2>/dev/null | grep -q 'Candidate: [^(]'; then
            [ "$(id -u)" -eq 0 ] || give_up "apt knows no $package (as root: apt-get update)"
            apt-get update >log 2>&1 || give_up "apt-get update: $(tail -n 1 log)"
        fi
        apt-get download "$package" >log 2>&1 || give_up "apt-get download $package: $(grep '^E:' log | tail -n 1)"
        dpkg -x "$package"_*.deb unpacked >log 2>&1 || give_up "dpkg: $(tail -n 1 log)"
    done
}
