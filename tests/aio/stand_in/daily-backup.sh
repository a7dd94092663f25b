#!/bin/sh
# Stands in for AIO's script: the same environment, order and exit codes, with real containers.
# What is odd about it is odd about the real one. Files in /knobs make it misbehave.
data=/mnt/docker-aio-config/data
poll=0.1
apps="nextcloud-aio-database nextcloud-aio-nextcloud nextcloud-aio-apache"

running() { docker ps --format '{{.Names}}' | grep -qx "$1"; }
stop_apps() { docker stop -t 0 $apps >/dev/null; }
backup_container() {
    docker rm -f nextcloud-aio-borgbackup >/dev/null 2>&1
    location=$(sed -n 's/.*"borg_backup_host_location": *"\(.*\)".*/\1/p' $data/configuration.json)
    remote=$(sed -n 's/.*"borg_remote_repo": *"\(.*\)".*/\1/p' $data/configuration.json)
    docker run --detach --name nextcloud-aio-borgbackup --network none \
        --env BORG_MODE="$1" --env BORG_PASSPHRASE=of-aio-itself \
        --env BORG_REMOTE_REPO="$remote" --env BORGBACKUP_HOST_LOCATION="$location" \
        --volume /usr:/usr:ro --volume "$AIO_ROOT/volume:/volumes/mastercontainer" \
        --volume "$AIO_ROOT/dump:/volumes/dump" --volume "$AIO_ROOT/cache:/root" \
        --volume "$AIO_ROOT/knobs:/knobs" --volume "${location:-$AIO_ROOT/elsewhere}:/mnt/borgbackup" \
        --volume "$AIO_ROOT/far:/far" --volume "$AIO_SCRIPTS:/scripts:ro" \
        stand-in sh /scripts/borgbackup.sh "$AIO_ROOT" >/dev/null
}

echo "$# $*|$DAILY_BACKUP$CHECK_BACKUP|$STOP_CONTAINERS$START_CONTAINERS$AUTOMATIC_UPDATES" >>/knobs/calls
echo "the script begins"
if ! grep -q '"wasStartButtonClicked": *true' $data/configuration.json; then
    echo "not set up yet"
    exit 0
fi
if running nextcloud-aio-borgbackup && grep -q '"backup-mode": *"restore"' $data/configuration.json; then
    echo "a restore is running"
    rm -f $data/daily_backup_running
    exit 0
fi
if [ "$DAILY_BACKUP$CHECK_BACKUP" = 11 ]; then
    echo "backup and check exclude each other"
    exit 1
fi
[ ! -e /knobs/stderr ] || cat /knobs/stderr >&2
touch $data/daily_backup_running
while [ -e /knobs/flood ]; do echo "one line after another"; done
while running nextcloud-aio-apache && [ -e /knobs/apache-down ]; do
    echo "waiting for apache"
    sleep $poll
done
while running nextcloud-aio-watchtower; do sleep $poll; done
while running nextcloud-aio-borgbackup; do sleep $poll; done
if [ "$AUTOMATIC_UPDATES" = 1 ]; then
    echo "the mastercontainer is updated"
    docker start nextcloud-aio-watchtower >/dev/null
    while running nextcloud-aio-watchtower; do sleep $poll; done
fi
if [ "$CHECK_BACKUP" != 1 ] && { [ "$DAILY_BACKUP" != 1 ] || [ "$STOP_CONTAINERS" = 1 ]; }; then
    echo "stopping containers"
    stop_apps
fi
if [ "$DAILY_BACKUP" = 1 ]; then
    echo "making the backup"
    stop_apps
    if [ -e /knobs/rewritten ]; then cat /knobs/rewritten >$data/configuration.json; fi
    if [ ! -e /knobs/never-started ]; then backup_container backup; fi
    running nextcloud-aio-borgbackup || echo "no backup container"
    while running nextcloud-aio-borgbackup; do
        echo "waiting for the backup"
        sleep $poll
    done
fi
if [ "$CHECK_BACKUP" = 1 ]; then
    echo "starting the check"
    backup_container check
fi
if [ "$START_CONTAINERS" = 1 ] || [ "$AUTOMATIC_UPDATES" = 1 ]; then
    echo "starting containers"
    docker start $apps >/dev/null
    [ ! -e /knobs/apache-dies ] || docker stop -t 0 nextcloud-aio-apache >/dev/null
fi
rm -f $data/daily_backup_running
[ ! -e /knobs/exit ] || exit "$(cat /knobs/exit)"
echo "the script ends"
