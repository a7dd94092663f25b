"""A whole site for one test: a source, its account, and the backup servers that pull from it."""

from __future__ import annotations

from collections.abc import Sequence

from . import builds
from .builds import Build, Programs
from .peer import Peer, Repository, Result
from .source import Source
from .sshd import SshServer
from .workplace import IS_ROOT, Account, Workplace


class Installations:
    """What is made once for all tests of a worker: builds, daemons, accounts."""

    def __init__(self) -> None:
        self.workplace = Workplace()
        self._programs: dict[tuple[str, bool], Programs] = {}
        self._servers: dict[tuple[str, ...], SshServer] = {}
        self._idle: list[Account] = []

    def programs(self, build: Build, *, capable: bool) -> Programs:
        """The programs of ``build``, installed once."""
        key = (build.programs, capable)
        if key not in self._programs:
            self._programs[key] = builds.install(*key[:1], self.workplace, capable=capable)
        return self._programs[key]

    def server(self, first: Sequence[str] = ()) -> SshServer:
        """The sshd with these settings before those that ship, started once."""
        key = tuple(first)
        if key not in self._servers:
            server = SshServer(self.workplace, first=key)
            server.start()
            self._servers[key] = server
        return self._servers[key]

    def take_account(self) -> Account:
        """An account nobody else uses now."""
        return self._idle.pop() if self._idle else self.workplace.account()

    def return_account(self, account: Account) -> None:
        """Give back an account for which nothing runs any more."""
        self._idle.append(account)

    def close(self) -> None:
        """Stop and remove everything."""
        for server in self._servers.values():
            server.stop()
        self.workplace.close()


class Site:
    """A source with one account, and its backup servers by client name.

    ``sshd`` are settings of sshd that stand before those that ship.
    """

    def __init__(
        self,
        installations: Installations,
        build: Build,
        *,
        sshd: Sequence[str] = (),
        capable: bool | None = None,
    ) -> None:
        if capable is None:
            capable = IS_ROOT and build.programs == "frozen"
        self.build = build
        self.borg = builds.borg(build.borg)
        self.server = installations.server(sshd)
        self.installations = installations
        self.account = installations.take_account()
        self.source = Source(
            installations.workplace,
            self.account,
            installations.programs(build, capable=capable),
            self.borg,
        )
        self.peers: dict[str, Peer] = {}

    def peer(self, name: str = "luna", command: str | None = None) -> Peer:
        """The backup server that logs in as client ``name``; made at first use."""
        if name not in self.peers:
            peer = Peer(self.installations.workplace, self.server, self.source, name, self.borg)
            peer.authorize(command)
            self.peers[name] = peer
        return self.peers[name]

    def allow(self, client: str = "luna", /, **keys: object) -> None:
        """Write a whitelist of this one client, which may reach unencrypted new repositories."""
        self.source.write_whitelist({client: {"allow_unknown_repository": True} | keys})

    def repository(self, name: str = "repository", *, encryption: str = "none") -> Repository:
        """A new repository of the backup server luna."""
        return self.peer().repository(name, encryption=encryption)

    def pull(
        self,
        request: str | bytes,
        repository: Repository | None = None,
        *,
        stdin: bytes | None = None,
    ) -> Result:
        """One request of luna's, served from ``repository`` when there is one."""
        return self.peer().pull(request, repository, stdin=stdin)

    def close(self) -> None:
        """Wait until nothing of it runs, then remove it."""
        try:
            self.source.assert_nothing_left()
        finally:
            for peer in self.peers.values():
                peer.remove()
            self.source.remove()
        self.installations.return_account(self.account)
