#!/bin/sh
# Makes the mastercontainer; the script in it talks to the engine as AIO's does.
exec docker run --detach --name nextcloud-aio-mastercontainer --network none \
    --env AIO_ROOT="$AIO_ROOT" --env AIO_SCRIPTS="$AIO_SCRIPTS" --env DOCKER_HOST="$DOCKER_HOST" \
    --volume /usr:/usr:ro --volume "$ENGINE:$ENGINE" \
    --volume "$AIO_ROOT/volume:/mnt/docker-aio-config" --volume "$AIO_ROOT/knobs:/knobs" \
    --volume "$AIO_SCRIPTS/daily-backup.sh:/daily-backup.sh:ro" \
    --env ENGINE="$ENGINE" stand-in sh -c 'while sleep 3600; do :; done' "$AIO_ROOT"
