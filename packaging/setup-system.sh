#!/bin/sh
# Install the Debian packages that packaging/debian-packages.txt lists, only those missing.
#
# usage: packaging/setup-system.sh build|run
#
# Not root: names what is missing and the one command that installs it, and exits 1.
# Silent when there is nothing to do.
set -eu

list=$(dirname "$0")/debian-packages.txt
case ${1-} in
    build) needs='build' ;;
    run) needs='build|run' ;;
    *)
        echo "usage: packaging/setup-system.sh build|run" >&2
        exit 64
        ;;
esac

missing=
while read -r package need _reason; do
    case $package in '' | '#'*) continue ;; esac
    case "|$needs|" in *"|$need|"*) ;; *) continue ;; esac
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) || status=
    [ "$status" = installed ] || missing="$missing $package"
done <"$list"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "setup-system: missing Debian packages:$missing" >&2
    echo "setup-system: as root, run: apt-get update && apt-get install --yes --no-install-recommends$missing" >&2
    exit 1
fi

echo "setup-system: installing$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive

# A package manager that runs in the background (a fresh cloud machine's first minutes) holds its
# lock for a while; apt-get update has no option to wait for the lists' lock, so try again.
apt() {
    apt-get --quiet --quiet --option DPkg::Lock::Timeout=600 --option Acquire::Retries=3 "$@" \
        >>"$log" 2>&1 </dev/null
}
update() {
    for _try in 1 2 3 4 5 6; do
        apt update && return 0
        sleep 10
    done
    return 1
}
# shellcheck disable=SC2086 # a list of plain package names
if ! { update && apt install --yes --no-install-recommends $missing; }; then
    cat "$log" >&2
    echo "setup-system: could not install:$missing" >&2
    exit 1
fi
