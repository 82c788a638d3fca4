#!/bin/sh
# Puts valgrind into .tools/ for `make callgrind`. Says in one line what it did.
set -u
what=valgrind
. "$(dirname "$0")/debian.sh"

if command -v valgrind >/dev/null; then
    echo "valgrind: already on PATH"
    exit 0
fi
if [ -x "$tools/valgrind" ]; then
    echo "valgrind: already in $tools"
    exit 0
fi
unpack valgrind
libexec=$(dirname "$(find unpacked -name 'callgrind-amd64-linux' -o -name 'callgrind-arm64-linux' | head -n 1)")
cat >valgrind <<END
#!/bin/sh
VALGRIND_LIB="$tools/valgrind.d/${libexec#unpacked/}" exec "$tools/valgrind.d/usr/bin/valgrind" "\$@"
END
chmod +x valgrind
rm -rf "$tools/valgrind.d" && mv unpacked "$tools/valgrind.d" || give_up "cannot write $tools"
./valgrind --version >log 2>&1 || give_up "it does not run here: $(tail -n 1 log)"
mv valgrind "$tools/valgrind" || give_up "cannot write $tools"
echo "valgrind: $(echo valgrind_*.deb) unpacked to $tools"
