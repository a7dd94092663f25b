#!/bin/bash
# Make the frozen bundle dist/borg-pull (make frozen calls this once .venv is set up).
#
# As root it also sets owner, group, modes and the one capability; otherwise it says what it left
# out. Where two builds may differ: docs/building.md, "Reproducible builds".
set -euo pipefail
cd "$(dirname "$0")/.."

bundle=build/frozen/borg-pull
# The time of the last commit dates everything the build writes.
: "${SOURCE_DATE_EPOCH:=$(git -c safe.directory='*' log -1 --format=%ct 2>/dev/null || echo 315532800)}"
export SOURCE_DATE_EPOCH
export PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8 TZ=UTC
export PYTHONNODEBUGRANGES=1 # byte code without columns: less to read at each start
export PYINSTALLER_CONFIG_DIR=build/pyinstaller # not the user's cache of stripped libraries
export PYI_LOG_LEVEL=ERROR # an option sets it too late for the first lines
umask 022

rm -rf build/frozen build/pyinstaller
.venv/bin/python -m PyInstaller --noconfirm --clean \
    --distpath build/frozen --workpath build/pyinstaller/work packaging/borg-pull.spec

# The loader ignores LD_LIBRARY_PATH, by which PyInstaller's programs find their libraries, for a
# program with capabilities; $ORIGIN in a library (not in a program) it follows.
while IFS= read -r -d '' library; do
    needed=$(patchelf --print-needed "$library")
    for name in $needed; do
        if [ -e "$bundle/_internal/$name" ]; then
            patchelf --set-rpath "\$ORIGIN/$(realpath --relative-to="${library%/*}" "$bundle/_internal")" "$library"
            break
        fi
    done
done < <(find "$bundle/_internal" -type f -name '*.so*' -print0)

find "$bundle" -type d -exec chmod 0755 {} +
find "$bundle" -type f -exec chmod 0644 {} +
chmod 0755 "$bundle"/borg-pull "$bundle"/borg-pull-*
find "$bundle" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

if [ "$(id -u)" -eq 0 ]; then
    packaging/grant.sh "$bundle"
else
    echo "frozen: not root, so left out: owner root, group borg-pull and mode 0750 of" \
        "borg-pull-source, and its capability; packaging/install.sh, as root, sets them"
fi

mkdir -p dist
rm -rf dist/borg-pull
mv "$bundle" dist/borg-pull
