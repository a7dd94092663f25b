#!/bin/sh
# Install the frozen bundle, dist/borg-pull, on a source (as root). Running it again updates it.
#
# usage: packaging/install.sh [--prefix /opt/borg-pull]
#
# Makes the system account and group borg-pull, the bundle in PREFIX with the one capability, the
# directories below, the audit log's rotation, and the companion's units. It writes no configuration
# and leaves sshd's alone, which sshd -t must have passed before a restart reads it:
# docs/quickstart.md has both.
set -eu
PATH=$PATH:/usr/sbin:/sbin

prefix=/opt/borg-pull
case $# in
    0) ;;
    2)
        [ "$1" = --prefix ] && prefix=$2
        ;;
esac
case "$#:${1-}:$prefix" in
    0:*:/* | 2:--prefix:/*) ;;
    *)
        echo "usage: packaging/install.sh [--prefix /ABSOLUTE/PATH]" >&2
        exit 64
        ;;
esac
if [ "$(id -u)" -ne 0 ]; then
    echo "install: only root can set owners and the capability" >&2
    exit 1
fi

if [ "$(cat /proc/sys/fs/protected_hardlinks)" != 1 ]; then
    # The program finds its runtime beside itself: linked into a directory of theirs, anybody's.
    echo "install: accounts may link to files they do not own; run: sysctl fs.protected_hardlinks=1" >&2
    exit 1
fi

project=$(cd "$(dirname "$0")/.." && pwd)
bundle=$project/dist/borg-pull
if [ ! -x "$bundle/borg-pull-source" ]; then
    echo "install: there is no $bundle; run: make frozen" >&2
    exit 1
fi
umask 022

getent group borg-pull >/dev/null || groupadd --system borg-pull
if ! getent passwd borg-pull >/dev/null; then
    # sshd runs the forced command through the account's shell.
    useradd --system --gid borg-pull --home-dir /var/lib/borg-pull --no-create-home \
        --shell /bin/sh --comment 'Borg backups pulled over SSH' borg-pull
fi
# Not '!', which useradd leaves: without PAM sshd takes that for a locked account and refuses its
# keys too. '*' is no password's hash either.
usermod --password '*' borg-pull

# Everything above a program with a capability must be root's alone to change.
directory=$(dirname "$prefix")
mkdir -p "$directory"
new=$(mktemp -d "$directory/.borg-pull.XXXXXX")
trap 'rm -rf "$new"' EXIT
cp -R "$bundle/." "$new"
chmod 0755 "$new"
install -D -m 0644 "$project/contrib/sshd/borg-pull.conf" "$new/contrib/sshd/borg-pull.conf"
"$project/packaging/grant.sh" "$new"
# A backup that is running keeps the files it has open and finds what it still has to import in the
# new bundle. No old one is kept: it would be a second program with the capability.
if [ -e "$prefix" ]; then
    mv "$prefix" "$new.old"
fi
mv "$new" "$prefix"
rm -rf "$new.old"

install -d -o root -g borg-pull -m 0750 /etc/borg-pull
install -d -o borg-pull -g borg-pull -m 0700 /var/lib/borg-pull
# Forwarded sockets: gone after a restart of the machine, and so must the directory come back.
install -d -o root -g root -m 0755 /etc/tmpfiles.d
echo 'd /run/borg-pull 0700 borg-pull borg-pull -' >/etc/tmpfiles.d/borg-pull.conf
install -d -o borg-pull -g borg-pull -m 0700 /run/borg-pull

if [ -e "$project/contrib/logrotate.conf" ] && [ -d /etc/logrotate.d ]; then
    install -o root -g root -m 0644 "$project/contrib/logrotate.conf" /etc/logrotate.d/borg-pull
fi
# Not enabled: only a host with Nextcloud AIO has a use for them.
if [ -d /etc/systemd/system ]; then
    for unit in borg-pull-aio.socket borg-pull-aio.service; do
        sed "s|/opt/borg-pull/|$prefix/|" "$project/contrib/systemd/$unit" >"$prefix/contrib/$unit"
        install -o root -g root -m 0644 "$prefix/contrib/$unit" "/etc/systemd/system/$unit"
    done
fi
echo "installed $prefix; docs/quickstart.md has the configuration and sshd's part"
