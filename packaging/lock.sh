#!/bin/sh
# Regenerate the locked, hashed requirements from the .in files beside this script.
#
# usage: packaging/lock.sh [PIP-COMPILE OPTION...]
#
# Every hash the public registry publishes for a release is kept, so one lock serves x86_64,
# aarch64 and a build from source. Local pip configuration is ignored: a private mirror or a
# directory of wheels must not end up deciding what everyone installs.
set -eu

python=${PYTHON:-/usr/bin/python3}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

unset PIP_FIND_LINKS PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_REQUIRE_HASHES
PIP_CONFIG_FILE=/dev/null
export PIP_CONFIG_FILE

"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pip-tools

cd "$here"
for name in bootstrap build dev fuzz borg14 borg14-bootstrap; do
    "$work/venv/bin/pip-compile" --quiet --strip-extras --allow-unsafe --generate-hashes \
        --resolver=backtracking --no-header --no-emit-index-url --no-emit-find-links \
        --no-emit-trusted-host --output-file "requirements-$name.txt" "$@" "requirements-$name.in"
done
