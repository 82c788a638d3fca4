#!/bin/sh
# Puts strace into .tools/ for the tests that inject errors into system calls. Says in one line what it did.
set -u
what=strace
. "$(dirname "$0")/debian.sh"

if [ -x "$tools/strace" ]; then
    echo "strace: already in $tools"
    exit 0
fi
if command -v strace >/dev/null; then
    echo "strace: already on PATH"
    exit 0
fi
unpack strace libunwind8
libraries=$(dirname "$(find unpacked -name 'libunwind.so.8' | head -n 1)")
# What is traced is not to see the libraries: -E takes the variable out of its environment.
cat >strace <<END
#!/bin/sh
LD_LIBRARY_PATH="$tools/strace.d/${libraries#unpacked/}" exec "$tools/strace.d/usr/bin/strace" -E LD_LIBRARY_PATH "\$@"
END
chmod +x strace
rm -rf "$tools/strace.d" && mv unpacked "$tools/strace.d" || give_up "cannot write $tools"
./strace -V >log 2>&1 || give_up "it does not run here: $(tail -n 1 log)"
mv strace "$tools/strace" || give_up "cannot write $tools"
echo "strace: $(echo strace_*.deb) unpacked to $tools"
