#!/bin/sh
# Runs the tests of engine, watcher and connections on a compiled engine with AddressSanitizer and
# UndefinedBehaviorSanitizer in it: every read and write of memory in our modules is checked, and the first bad one ends
# the process with a report. In a copy, so that the modules of the working tree stay what they are.
#
#   tools/memcheck.sh PYTHON [PYTEST-ARGUMENT...]
#
# Python takes its memory from malloc here, which the sanitizer watches; its own pools would hide an object that is used
# after its end. Leaks are not looked for: Python keeps much until it ends.
set -eu
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
shift
cd "$(dirname "$0")/.."
copy=build/memcheck/tree

gcc=${CC:-gcc}
runtime=$($gcc -print-file-name=libasan.so 2>/dev/null || true)
if [ ! -e "$runtime" ]; then
    echo "memcheck: $gcc has no libasan.so; install gcc with its sanitizers" >&2
    exit 1
fi

# `build/` beside it stays, so that only what has changed is compiled.
mkdir -p "$copy"
rm -rf "$copy/shardnet" "$copy/tests" "$copy/_build" "$copy/bench"
cp -R shardnet tests _build bench examples docs pyproject.toml README.md "$copy"
cd "$copy"
find shardnet -name '*.so' -delete
rm -f shardnet/_compiled.*.txt

export SHARDNET_ENGINE=compiled SHARDNET_BUILD=compiled
export SHARDNET_CFLAGS="-g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"
"$python" -m _build

# Reports go to files: pytest has the standard error, and takes it along when the process ends. The test that is left
# out asks for more memory than any machine has, which the sanitizer takes for an error.
reports=$(cd .. && pwd)/report
rm -f "$reports".*
status=0
LD_PRELOAD="$runtime" PYTHONMALLOC=malloc \
    ASAN_OPTIONS="detect_leaks=0:log_path=$reports" \
    UBSAN_OPTIONS="print_stacktrace=1:log_path=$reports" \
    "$python" -m pytest -p no:cacheprovider -m 'not load and not slow and not process' --timeout 300 \
    --deselect tests/watcher/test_names.py::test_watcher_that_cannot_be_made_leaves_no_descriptor \
    tests/engine tests/watcher tests/test_connection_*.py tests/test_adapter_*.py tests/test_callback.py \
    tests/test_resume*.py tests/test_loop.py tests/test_selector.py "$@" || status=$?

for report in "$reports".*; do
    if [ -e "$report" ] && grep -q 'ERROR: AddressSanitizer\|runtime error' "$report"; then
        cat "$report" >&2
        status=1
    fi
done
[ "$status" -eq 0 ] || echo "memcheck: failed" >&2
exit "$status"
