#!/bin/sh
# Puts tmux into .tools/ for the tests of `shardnet top` in a real terminal. Says in one line what it did.
set -u
what=tmux
. "$(dirname "$0")/debian.sh"

if [ -x "$tools/tmux" ]; then
    echo "tmux: already in $tools"
    exit 0
fi
if command -v tmux >/dev/null; then
    echo "tmux: already on PATH"
    exit 0
fi
unpack tmux libevent-core-2.1-7 libutempter0
libraries=$(dirname "$(find unpacked -name 'libevent_core-2.1.so.7' | head -n 1)")
cat >tmux <<END
#!/bin/sh
LD_LIBRARY_PATH="$tools/tmux.d/${libraries#unpacked/}" exec "$tools/tmux.d/usr/bin/tmux" "\$@"
END
chmod +x tmux
rm -rf "$tools/tmux.d" && mv unpacked "$tools/tmux.d" || give_up "cannot write $tools"
./tmux -V >log 2>&1 || give_up "it does not run here: $(tail -n 1 log)"
mv tmux "$tools/tmux" || give_up "cannot write $tools"
echo "tmux: $(echo tmux_*.deb) unpacked to $tools"
