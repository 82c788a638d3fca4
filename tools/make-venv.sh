#!/bin/sh
# Make a virtual environment with a pip that knows dependency groups.
# Some distributions ship Python without the half of venv that brings pip; virtualenv from PyPI stands in then.
set -eu
venv=$1
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    for candidate in python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "make-venv: $python is no Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11" >&2
    exit 1
fi

rm -rf "$venv"
if ! "$python" -m venv "$venv" >/dev/null 2>&1; then
    rm -rf "$venv"
    tmp=$(mktemp -d)
    trap 'rm -rf "$tmp"' EXIT
    "$python" -m pip install --quiet --target "$tmp" virtualenv
    PYTHONPATH=$tmp "$python" -m virtualenv --quiet "$venv"
fi
"$venv/bin/python" -m pip install --quiet --upgrade 'pip>=25.1'
