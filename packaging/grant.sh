#!/bin/sh
# Set owner, group, modes and the one capability of a bundle (as root).
#
# usage: packaging/grant.sh BUNDLE
set -eu
PATH=$PATH:/usr/sbin:/sbin

bundle=$1
getent group borg-pull >/dev/null || groupadd --system borg-pull
chown --recursive root:root "$bundle"
chgrp borg-pull "$bundle/borg-pull-source"
# Only the group may start it: whoever can runs code that reads every file.
chmod 0750 "$bundle/borg-pull-source"
# Last, because chown takes capabilities away.
setcap cap_dac_read_search=ep "$bundle/borg-pull-source"
