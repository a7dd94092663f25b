"""What sshd must be set to for the account, and why: contrib/sshd/borg-pull.conf."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One keyword of sshd_config(5)."""

    keyword: str
    value: str
    severity: Literal["error", "warning"]
    """Of another value: an error opens what must be closed, or closes what a pull needs."""
    why: str
    """One or two sentences, for the documents."""
    risk: str
    """What another value does, in a few words."""
    also: Callable[[str], bool]
    """Whether another value will do, too."""

    def fits(self, value: str) -> bool:
        """Whether the value in force will do."""
        return value == self.value or self.also(value)


def _nothing_else(_value: str) -> bool:
    return False


def _between(least: int, most: int) -> Callable[[str], bool]:
    return lambda value: value.isdigit() and least <= int(value) <= most


def _for_nobody_else(mask: str) -> bool:
    return mask.isdigit() and int(mask, 8) & 0o077 == 0o077


def _needed(
    keyword: str,
    value: str,
    why: str,
    risk: str,
    *,
    also: Callable[[str], bool] = _nothing_else,
) -> Setting:
    return Setting(keyword=keyword, value=value, severity="error", why=why, risk=risk, also=also)


def _wise(
    keyword: str,
    value: str,
    why: str,
    risk: str,
    *,
    also: Callable[[str], bool] = _nothing_else,
) -> Setting:
    return Setting(keyword=keyword, value=value, severity="warning", why=why, risk=risk, also=also)


SETTINGS = (
    _needed(
        "PubkeyAuthentication",
        "yes",
        "Clients log in by key, whatever is set for all accounts.",
        "no client can log in",
    ),
    _needed(
        "AuthenticationMethods",
        "publickey",
        "By key and in no other way: who logs in with a password has no forced command.",
        "a login without a key has no forced command",
    ),
    _needed(
        "AuthorizedKeysFile",
        "/etc/borg-pull/authorized_keys",
        "A file of root's. To one in the account's home, whatever runs as it could add a key.",
        "the account could let keys in by itself",
    ),
    _needed(
        "AuthorizedKeysCommand",
        "none",
        "A command set for all accounts could let in keys without a forced command.",
        "it can let in keys without a forced command",
    ),
    _needed(
        "TrustedUserCAKeys",
        "none",
        "A certificate for the account has no forced command.",
        "a certificate has no forced command",
    ),
    _needed(
        "ForceCommand",
        "none",
        "The key's own line has the forced command, with the client's name in it. One set here or "
        "for all accounts would take its place, and the name would be lost.",
        "it takes the place of the key's forced command",
    ),
    _needed(
        "ChrootDirectory",
        "none",
        "The forced command and the data are outside of one that is set for all accounts.",
        "the forced command is not found there",
    ),
    _wise(
        "ExposeAuthInfo",
        "yes",
        "Tells the forced command which key it was, for the audit log.",
        "the audit log cannot name the key",
    ),
    _needed(
        "AcceptEnv",
        "none",
        "Takes the place of the names that are accepted for all accounts. There is no word for an "
        "empty list: `none` is a variable that nobody looks at.",
        "the peer can set variables of the account's shell",
        also=lambda value: not value,
    ),
    _needed(
        "PermitTTY",
        "no",
        "No request needs a terminal, which would turn bytes into signals.",
        "the peer gets a terminal",
    ),
    _needed(
        "PermitUserRC",
        "no",
        "`~/.ssh/rc` would run before the forced command.",
        "~/.ssh/rc runs before the forced command",
    ),
    _wise(
        "Banner",
        "none",
        "Its text would stand among borg's messages.",
        "its text stands among borg's messages",
    ),
    _needed(
        "DisableForwarding",
        "no",
        "One kind of forwarding is needed, whatever is set for all accounts.",
        "no socket can be forwarded",
    ),
    _needed(
        "AllowStreamLocalForwarding",
        "remote",
        "Unix sockets, from the peer to here. `yes` and `local` would let the peer connect to each "
        "socket that the account can reach, such as a container engine's.",
        "the needed direction is closed, or the other open: to every Unix socket of this host",
    ),
    _needed(
        "AllowTcpForwarding",
        "remote",
        "`no` and `local` forbid the forwarding of Unix sockets with that of ports. Ports are "
        "closed by the next two.",
        "sockets cannot be forwarded, or ports are a step nearer",
    ),
    _needed(
        "PermitListen",
        "none",
        "No port here listens for a peer.",
        "the peer can open ports on this host",
    ),
    _needed(
        "PermitOpen",
        "none",
        "No connection goes out from here for a peer.",
        "the peer reaches the ports of this host and its networks",
    ),
    _needed(
        "StreamLocalBindMask",
        "0177",
        "A forwarded socket is for the account alone.",
        "others can connect to forwarded sockets",
        also=_for_nobody_else,
    ),
    _needed(
        "StreamLocalBindUnlink",
        "no",
        "`yes` would let a client take over the name of another's socket, and remove any file of "
        "the account's: the audit log, a lock.",
        "a client can take over another's socket, and remove the account's files",
    ),
    _needed(
        "AllowAgentForwarding",
        "no",
        "Who has taken over the source could use the keys of the backup server's agent.",
        "the backup server's keys could be used from here",
    ),
    _needed(
        "X11Forwarding",
        "no",
        "The same of its display.",
        "the peer's display could be reached from here",
    ),
    _needed(
        "PermitTunnel",
        "no",
        "No network interface for a peer.",
        "the peer could get a network interface",
    ),
    _wise(
        "MaxSessions",
        "1",
        "One request at a time on a connection, so that limits on connections limit requests.",
        "one connection carries many requests at once",
    ),
    _wise(
        "UnusedConnectionTimeout",
        "60",
        "Ends a connection that asks for nothing, and with it the sockets it has forwarded. In "
        "seconds.",
        "a connection without a request holds its sockets for ever",
        also=_between(1, 600),
    ),
    _wise(
        "ClientAliveInterval",
        "30",
        "sshd asks a silent peer whether it lives.",
        "the run of a peer that is gone never ends",
        also=_between(1, 120),
    ),
    _wise(
        "ClientAliveCountMax",
        "3",
        "After three questions without an answer, 90 seconds, the run ends and its lock is free.",
        "the run of a peer that is gone never ends",
        also=_between(1, 10),
    ),
    _wise(
        "LogLevel",
        "VERBOSE",
        "sshd's log then has each start of a forced command. Of a request too long for the shell "
        "there is no other record.",
        "a request too long for the shell is on no record but its login",
        also=lambda value: value.upper().startswith("DEBUG"),
    ),
)
