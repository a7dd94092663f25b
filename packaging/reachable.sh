#!/bin/bash
# Run a command in this project, where every account reaches it.
#
# usage: packaging/reachable.sh COMMAND [ARGUMENT...]
#
# As root the tests start programs of this very tree as throw-away accounts. A clone in root's home is
# closed to them; for the command alone it is then mounted at a place that is not.
set -euo pipefail
cd "$(dirname "$0")/.."

run() {
    BORG_PULL_FROZEN=$PWD/dist/borg-pull "$@"
}

as_nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups)
if [ "$(id -u)" -ne 0 ] || "${as_nobody[@]}" test -r "$PWD/packaging/reachable.sh"; then
    run "$@"
    exit
fi

place=$(mktemp -d /var/lib/borg-pull-tree.XXXXXX)
trap 'rmdir "$place"' EXIT
chmod 0755 "$place"
# The mount is seen in this namespace only and ends with it, however that comes about.
unshare --mount bash -euc '
    mount --bind "$PWD" "$0"
    cd "$0"
    export BORG_PULL_FROZEN=$PWD/dist/borg-pull
    "$@"
' "$place" "$@"
