#!/bin/sh
# Makes sure that the engine can be compiled, for CI: installs gcc and Python's headers on a Debian that has none.
#
#   tools/fetch-compiler.sh PYTHON
#
# A compiler cannot be unpacked beside the repository as the other tools are: it looks for its parts where it belongs.
set -eu
python=$1

works() {
    command -v "${CC:-cc}" >/dev/null && "$python" - <<'END'
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))
END
}

if works; then
    echo "compiler: already here"
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "compiler: none here, and only root on Debian could install one: install gcc and Python's headers" >&2
    exit 1
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gcc libc6-dev python3-dev >/dev/null
if ! works; then
    echo "compiler: gcc and python3-dev are installed, but $python has no Python.h: install the headers of that Python" >&2
    exit 1
fi
echo "compiler: installed gcc and python3-dev"
