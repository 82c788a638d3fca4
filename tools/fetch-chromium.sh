#!/bin/sh
# Puts Chromium, with what it needs that this machine has not, into .tools/ for `make pictures`. Some 200 MB. Says in one
# line what it did.
set -u
what=chromium
. "$(dirname "$0")/debian.sh"

if [ -x "$tools/chromium" ]; then
    echo "chromium: already in $tools"
    exit 0
fi
if command -v chromium >/dev/null; then
    echo "chromium: already on PATH"
    exit 0
fi
apt-cache policy chromium 2>/dev/null | grep -q 'Candidate: [^(]' || [ "$(id -u)" -ne 0 ] || apt-get update >/dev/null 2>&1
missing=$(apt-get --simulate --no-install-recommends install chromium 2>/dev/null | sed -n 's/^Inst \([^ ]*\) .*/\1/p')
[ -n "$missing" ] || give_up "apt cannot say what chromium needs"
# shellcheck disable=SC2086 # One word for each package.
unpack $missing
libraries=$(find unpacked -name '*.so*' -printf '%h\n' | sort -u | sed "s#^unpacked#$tools/chromium.d#" | tr '\n' ':')
cat >chromium <<END
#!/bin/sh
LD_LIBRARY_PATH="$libraries" exec "$tools/chromium.d/usr/lib/chromium/chromium" "\$@"
END
chmod +x chromium
rm -rf "$tools/chromium.d" && mv unpacked "$tools/chromium.d" || give_up "cannot write $tools"
./chromium --version >log 2>&1 || give_up "it does not run here: $(tail -n 1 log)"
mv chromium "$tools/chromium" || give_up "cannot write $tools"
echo "chromium: $(echo chromium_*.deb) unpacked to $tools"
