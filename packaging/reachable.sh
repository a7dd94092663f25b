#!/bin/bash
# Run a command in this project, where every account reaches it.
#
# usage: packaging/reachable.sh COMMAND [ARGUMENT...]
#
# As root the tests start programs of this very tree as throw-away accounts. A clone in root's home is
# closed to them; the command then runs in a copy at a place that is not.
set -euo pipefail
cd "$(dirname "$0")/.."

as_nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups)
if [ "$(id -u)" -eq 0 ] && ! "${as_nobody[@]}" test -r "$PWD/packaging/reachable.sh"; then
    place=$(mktemp -d /var/lib/borg-pull-tree.XXXXXX)
    trap 'rm -rf "$place"' EXIT
    cp -a . "$place"
    # The environment looks for the project where it was installed from.
    sed -i "s|$PWD|$place|g" "$place"/.venv/lib/python3*/site-packages/__editable__*
    chmod 0755 "$place"
    # Under a strict umask the files are closed, too; the bundle has the modes it is tested for.
    find "$place" -path "$place/dist" -prune -o ! -type l -exec chmod go+rX {} +
    cd "$place"
fi
BORG_PULL_FROZEN=$PWD/dist/borg-pull "$@"
