#!/bin/sh
# Stands in for AIO's backup container: a real borg, and a real repository in the mounted target.
data=/volumes/mastercontainer/data
if [ -n "$BORG_REMOTE_REPO" ]; then
    export BORG_REPO="$BORG_REMOTE_REPO" BORG_RSH=/scripts/rsh.sh
else
    export BORG_REPO=/mnt/borgbackup/borg
fi
export BORG_RELOCATED_REPO_ACCESS_IS_OK=yes
while [ -e /knobs/hold ]; do sleep 0.05; done
if [ -z "$BORG_REMOTE_REPO" ] && [ -f /mnt/borgbackup/borg/aio-lockfile ]; then
    echo "aio-lockfile is there"
    exit 1
fi
if [ "$BORG_MODE" = check ]; then
    borg check --verify-data || { echo "errors were found"; exit 1; }
    echo "Check finished successfully on 01.01.2026 - 00:00:00 (00 hours 00 minutes 01 seconds)."
    exit 0
fi
touch /volumes/dump/backup-is-running
finish() { rm -f /volumes/dump/backup-is-running; exit "$1"; }
[ ! -e /knobs/mute ] || finish 0
has_repository() {
    if [ -n "$BORG_REMOTE_REPO" ]; then borg info >/dev/null 2>&1; else [ -f "$BORG_REPO/config" ]; fi
}
if ! has_repository; then
    if [ -f $data/borg.config ]; then
        echo "no repository here; delete borg.config to initialise one"
        finish 1
    fi
    borg init --encryption=repokey-blake2 || finish 1
    touch $data/borg.config
fi
[ ! -e /knobs/fail ] || { echo "Backup failed!"; finish 1; }
borg create "::$(date +%Y%m%d_%H%M%S.%N)-nextcloud-aio" /scripts || finish 1
echo "Backup finished successfully on 01.01.2026 - 00:00:00 (00 hours 00 minutes 01 seconds)."
finish 0
