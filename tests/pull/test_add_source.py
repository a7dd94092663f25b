"""From nothing to a backup, by what ``add-source`` makes and prints alone."""

from __future__ import annotations

import json
import re
import stat
import tempfile
from pathlib import Path

import pytest
import tomli

from borg_pull.admin.authorized_keys import KEY_OPTIONS
from borg_pull.pull import config
from borg_pull.pull.host_keys import fingerprint
from tests.harness.builds import Build
from tests.harness.fixtures import SiteMaker
from tests.harness.site import Site
from tests.pull.runs import Answer, run


class NewUser:
    """Somebody with a host of their own and nothing configured."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "etc/pull.toml"
        self.file = directory / "etc/pull.d/web1.toml"
        self.repository = directory / "backup/web1"

    def settle(self) -> None:
        """Keep everything here."""
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        self.path.write_text(
            f'[settings]\nstate_dir = "{self.directory}/state"\n'
            f'runtime_dir = "{self.directory}/run"\n'
        )
        self.path.chmod(0o600)

    def add(self, *words: str, typed: str | None = None, name: str = "web1") -> Answer:
        return run("add-source", name, "--config", self.path, *words, typed=typed)

    def options(self, site: Site | None = None, **changed: str | None) -> list[str]:
        given: dict[str, str | None] = {
            "host": "127.0.0.1",
            "client": "luna",
            "path": "/srv/www",
            "repository": str(self.repository),
        }
        if site is not None:
            given |= {"port": str(site.server.port), "user": site.account.name}
        pairs = (given | changed).items()
        return [word for key, value in pairs if value is not None for word in (f"--{key}", value)]


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NewUser:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BORG_BASE_DIR", str(tmp_path / "borg"))
    made = NewUser(tmp_path)
    made.settle()
    return made


def pasted(answer: Answer) -> str:
    """The lines for the whitelist, as somebody would copy them."""
    found = re.search(r"^\[client\.\S+\]\n(?:\w.*\n)+", answer.stdout, re.MULTILINE)
    assert found, answer
    return found[0]


@pytest.mark.parametrize("encryption", ["repokey-blake2", "none"])
def test_what_it_makes_and_prints_is_enough_for_a_backup(
    user: NewUser, make_site: SiteMaker, build: Build, encryption: str
) -> None:
    site = make_site(build)
    tree = site.source.tree()
    site.source.file(tree / "file", "precious\n")
    accept = ["--accept", fingerprint(site.server.known_hosts_line.split()[2])]
    options = user.options(site, path=str(tree), encryption=encryption)
    answer = user.add(*options, *accept)
    assert answer.exit == 0, answer

    client = tomli.loads(pasted(answer))["client"]
    site.source.write_whitelist(client)
    [line] = client["luna"]["keys"]
    source = site.source
    command = f"{source.programs.source} {source.configuration} luna"
    site.server.authorize(site.account, f'{KEY_OPTIONS},command="{command}" {line}')

    pulled = run("run", "web1", "--config", user.path)
    assert pulled.exit == 0, pulled
    listed = run("archives", "web1", "--json", "--config", user.path)
    assert json.loads(listed.stdout)["archive"].startswith("web1-"), listed


def test_what_it_leaves_behind_is_nobody_elses(user: NewUser) -> None:
    answer = user.add(*user.options(schedule="*-*-* 02:00"))
    assert answer.exit == 0, answer
    assert "Its host key is not pinned; before the first run: borg-pull trust web1" in answer.stdout
    loaded = config.load(user.path)
    assert loaded.job["web1"].schedule == "*-*-* 02:00"
    passphrase_file = loaded.repository["web1"].passphrase_file
    assert passphrase_file == user.path.parent / "web1.passphrase"
    for path in (user.file, passphrase_file, loaded.source["web1"].identity):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for path in (user.file.parent, user.repository):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    written = passphrase_file.read_text()
    assert len(written) == 41
    assert written.strip() not in answer.stdout


def test_a_new_user_has_no_configuration_yet(
    user: NewUser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user.path.unlink()
    with tempfile.TemporaryDirectory() as short:
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        answer = user.add(*user.options())
    assert answer.exit == 0, answer
    assert f"made {user.path}\n" in answer.stdout
    assert list(config.load(user.path).source) == ["web1"]
    assert (tmp_path / ".local/state/borg-pull/keys/web1").exists()


def test_it_asks_for_what_no_option_says(user: NewUser) -> None:
    """The host is wrong at first, and asked for again."""
    typed = "\n".join(
        (
            *("-oProxyCommand=x", "web1.example.org"),
            *("srv", "/srv/www", "y", "/etc", "n"),
            str(user.repository),
            *("nonsense", "*-*-* 03:00"),
            "",
        )
    )
    answer = user.add("--ask", "--client", "luna", typed=typed)
    assert answer.exit == 2, answer
    assert "pin its host key later: borg-pull trust web1" in answer.stdout
    assert "begins with a dash" in answer.stdout + answer.stderr
    loaded = config.load(user.path)
    assert loaded.source["web1"].host == "web1.example.org"
    assert loaded.job["web1"].paths == ["/srv/www", "/etc"]
    assert loaded.job["web1"].schedule == "*-*-* 03:00"


@pytest.mark.parametrize("missing", ["host", "path", "repository"])
def test_what_is_missing_is_named_where_nobody_is_asked(user: NewUser, missing: str) -> None:
    answer = user.add(*user.options(**{missing: None}))
    assert (answer.exit, answer.stderr) == (64, f"--{missing} is missing; give it, or --ask")
    assert not user.file.exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"host": "-oProxyCommand=x"}, "source.web1.host begins with a dash"),
        ({"host": "a b"}, "source.web1.host is no host name or address"),
        ({"path": "srv"}, "job.web1.paths[0] is not absolute"),
        ({"path": '/a"\n[job.x]\n'}, "job.web1.paths[0] has a control character"),
        ({"repository": "backup"}, "repository.web1.path must be an absolute path"),
        ({"client": "a/b"}, "source.web1.client is no name"),
        ({"schedule": "at night"}, "job.web1.schedule is no calendar expression"),
        ({"port": "0"}, "source.web1.port must be at least 1"),
        ({"user": "-x"}, "source.web1.user begins with a dash"),
    ],
)
def test_answers_that_do_not_fit_change_nothing(
    user: NewUser, changed: dict[str, str], said: str
) -> None:
    answer = user.add(*user.options(None, **changed))
    assert (answer.exit, answer.stderr.startswith(said)) == (64, True), answer
    assert sorted(path.name for path in user.path.parent.iterdir()) == ["pull.toml"]
    assert not user.repository.exists()
    assert list((user.directory / "state/keys").iterdir()) == []


@pytest.mark.parametrize("name", ["web 1", "../web1", "-web1", ""])
def test_a_name_that_is_none(user: NewUser, name: str) -> None:
    answer = run("add-source", "--config", user.path, *user.options(), "--", name)
    assert (answer.exit, "is no name" in answer.stderr) == (64, True)


def test_a_source_that_is_there_already(user: NewUser) -> None:
    assert user.add(*user.options()).exit == 0
    before = user.file.read_text()
    answer = user.add(*user.options(path="/etc"))
    assert (answer.exit, answer.stderr.startswith("there is a source web1 already")) == (64, True)
    assert user.file.read_text() == before


def test_a_broken_configuration_is_not_added_to(user: NewUser) -> None:
    user.path.write_text("[settngs]\n")
    answer = user.add(*user.options())
    assert (answer.exit, "did you mean settings?" in answer.stderr) == (78, True)
    assert not user.file.exists()


def test_after_a_failure_it_goes_on_with_what_it_made(user: NewUser) -> None:
    """borg is not to be had the first time."""
    user.repository.parent.mkdir()
    user.repository.write_text("in the way")
    failed = user.add(*user.options())
    assert (failed.exit, user.file.exists()) == (2, False)
    key = (user.directory / "state/keys/web1").read_text()
    passphrase = (user.path.parent / "web1.passphrase").read_text()
    user.repository.unlink()
    answer = user.add(*user.options())
    assert answer.exit == 0, answer
    assert (user.directory / "state/keys/web1").read_text() == key
    assert (user.path.parent / "web1.passphrase").read_text() == passphrase
    assert "borg key export" in answer.stdout


def test_a_repository_that_is_there_stays_as_it_is(user: NewUser, tmp_path: Path) -> None:
    assert user.add(*user.options()).exit == 0
    before = (user.repository / "config").read_text()
    user.file.unlink()
    given = tmp_path / "given"
    given.write_text("another\n")
    given.chmod(0o644)
    refused = user.add(*user.options(), "--passphrase-file", str(given))
    assert (refused.exit, "is open to others" in refused.stderr) == (78, True)
    given.chmod(0o600)
    answer = user.add(*user.options(), "--passphrase-file", str(given))
    assert answer.exit == 0, answer
    assert (user.repository / "config").read_text() == before
    assert config.load(user.path).repository["web1"].passphrase_file == given


def test_where_a_new_configuration_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(config.ENVIRONMENT, raising=False)
    monkeypatch.setattr(config, "OF_SYSTEM", tmp_path / "etc/pull.toml")
    for uid, place in ((0, config.OF_SYSTEM), (1000, tmp_path / ".config/borg-pull/pull.toml")):
        monkeypatch.setattr("os.geteuid", lambda uid=uid: uid)
        assert config.path_to_make() == place
    monkeypatch.setenv(config.ENVIRONMENT, "/chosen")
    assert config.path_to_make() == Path("/chosen")
