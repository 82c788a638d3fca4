#!/bin/sh
# Puts CPython's own tests of asyncio into .tools/, for an interpreter (the argument) that came without them: those that
# Debian packs apart. Says in one line what it did.
set -u
what="python tests"
. "$(dirname "$0")/debian.sh"

python=${1:-python3}
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
unpack "$package"
[ -d "unpacked/usr/lib/$version/test/test_asyncio" ] || give_up "$package has no test_asyncio"
mkdir -p "$tools/$version" && mv "unpacked/usr/lib/$version/test" "$tools/$version/test" || give_up "cannot write $tools"
echo "python tests: $(echo "$package"_*.deb) unpacked to $tools"
