#!/bin/sh
# Joins borg's standard streams to the socket named by BORGSOCKETWRAP_SOCKET_PATH, with socat.
#
# A stand-in for borg-pull-socket-wrap where only a POSIX shell and socat are at hand: name it as
# `socket_wrapper` in the [runtime] section of the whitelist. Borg's arguments are ignored.
# Exit codes: 0 both directions ended, 64 no usable BORGSOCKETWRAP_SOCKET_PATH, 69 no socket,
# 71 socat is missing, 1 whatever socat reports.
#
# What borg-pull-socket-wrap does and this cannot:
#  - It cannot verify who listens on the socket: any process of any user that was able to bind
#    the name receives the backup. BORG_PULL_SESSION_PROCESSES is not looked at. Keep the
#    socket directory writable by the one account, and one account to one client.
#  - It drops the capability it inherits (CAP_DAC_READ_SEARCH) only when util-linux's setpriv is
#    there, and only then, not first: the shell and setpriv run with it. Without setpriv, socat
#    keeps it, and so can read every file.
#  - It dies with borg only through setpriv; without it, it lives until the peer closes.
#  - It writes no report (BORG_PULL_WRAP_REPORT), so the audit record lacks the bytes each way,
#    and whether the peer closed too early.
#  - Every socat failure is exit code 1, a refused connection included.

set -eu

fail() {
    code=$1
    shift
    echo "socket-wrap.sh: $*" >&2
    exit "$code"
}

socket=${BORGSOCKETWRAP_SOCKET_PATH:-}
[ -n "$socket" ] || fail 64 "BORGSOCKETWRAP_SOCKET_PATH is not set; borg-pull-source sets it for borg"
case $socket in
    # socat's address syntax gives commas, colons, quotes, brackets and backslashes a meaning.
    *[!A-Za-z0-9._/@+=-]*) fail 64 "the socket's path holds a character that socat would interpret" ;;
esac
[ -e "$socket" ] || fail 69 "no forwarded socket at $socket; forward one with ssh -R"
[ -S "$socket" ] || fail 69 "$socket is not a socket; remove it, then forward one with ssh -R"
command -v socat >/dev/null || fail 71 "socat is missing; install it"

# -b: socat's default block is 8 KiB, and a third as fast. -t: after the end of one direction it
# would cut the other off half a second later.
set -- socat -b 65536 -t 86400 - "UNIX-CONNECT:$socket"

if command -v setpriv >/dev/null; then
    exec setpriv --ambient-caps=-all --inh-caps=-all --pdeathsig KILL "$@"
fi
exec "$@"
