#!/bin/bash
# Build borg 1.4 from its locked source distribution, once, and print the path of its program.
#
# The build is kept in BORG_PULL_CACHE, which everyone must be able to enter, because tests run
# borg as throw-away system users: by default /var/cache/borg-pull for root, the user's own cache
# directory otherwise. About 40 seconds of processor time the first time.
set -euo pipefail

version=1.4.5
python=${PYTHON:-/usr/bin/python3}
packaging=$(cd "$(dirname "$0")" && pwd)
if [ "$(id -u)" -eq 0 ]; then
    default=/var/cache/borg-pull
else
    default=${XDG_CACHE_HOME:-$HOME/.cache}/borg-pull
fi
cache=${BORG_PULL_CACHE:-$default}
abi=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("SOABI"))')
# What was asked for decides, so that a changed lock is built anew.
asked=$(cat "$packaging"/requirements-borg14*.txt | sha256sum | cut -c1-12)
home=$cache/borg-$version-$abi-$asked

umask 022
mkdir -p "$cache"
# One build at a time; the directory counts as built when the program in it is there.
exec 9>"$cache/.lock"
flock 9
if [ ! -x "$home/bin/borg" ]; then
    log=$cache/borg-$version.log
    echo "building borg $version in $home" >&2
    rm -rf "$home"
    pip() {
        "$home/bin/python" -m pip --quiet --disable-pip-version-check install --require-hashes "$@"
    }
    # A virtual environment cannot be moved, so the program is linked in last.
    if ! {
        "$python" -m venv "$home" &&
            pip -r "$packaging/requirements-borg14-bootstrap.txt" &&
            # The sources, not a wheel: the published one may bundle libraries of its own.
            pip --no-build-isolation --use-pep517 --no-binary borgbackup \
                -r "$packaging/requirements-borg14.txt" &&
            mv "$home/bin/borg" "$home/bin/borg.new"
    } >"$log" 2>&1; then
        cat "$log" >&2
        echo "borg14: building borg $version failed; needs packaging/setup-system.sh run" >&2
        exit 1
    fi
    "$home/bin/borg.new" --version >/dev/null
    mv "$home/bin/borg.new" "$home/bin/borg"
fi
echo "$home/bin/borg"
