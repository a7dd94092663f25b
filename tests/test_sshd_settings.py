"""What ships for sshd is what the documents explain, and what sshd then says is in force."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from borg_pull.admin.doctor.settings import SETTINGS
from tests.harness.sshd import SHIPPED_SETTINGS, make_key


def shipped() -> list[tuple[str, str]]:
    lines = (line.strip() for line in SHIPPED_SETTINGS.read_text().splitlines())
    found = (re.fullmatch(r"(\w+) (.*)", line) for line in lines if not line.startswith("#"))
    return [(match[1], match[2]) for match in found if match is not None]


def test_the_file_holds_the_settings_that_are_explained() -> None:
    match, *settings = shipped()
    assert match == ("Match", "User borg-pull")
    assert settings == [(setting.keyword, setting.value) for setting in SETTINGS]


CARELESS = """\
PubkeyAuthentication no
AuthenticationMethods password
AuthorizedKeysFile .ssh/authorized_keys
AuthorizedKeysCommand /bin/true
AuthorizedKeysCommandUser nobody
TrustedUserCAKeys /etc/ca
ForceCommand /bin/false
ChrootDirectory /var/empty
ExposeAuthInfo no
AcceptEnv *
PermitTTY yes
PermitUserRC yes
Banner /etc/issue
DisableForwarding yes
AllowStreamLocalForwarding yes
AllowTcpForwarding yes
PermitListen any
PermitOpen any
StreamLocalBindMask 0000
StreamLocalBindUnlink yes
AllowAgentForwarding yes
X11Forwarding yes
PermitTunnel yes
MaxSessions 100
UnusedConnectionTimeout none
ClientAliveInterval 0
ClientAliveCountMax 0
LogLevel QUIET
"""


@pytest.mark.needs_root
def test_nothing_set_for_all_accounts_stays_in_force(tmp_path: Path) -> None:
    """As sshd itself says; the other accounts, the control, keep theirs."""
    make_key(tmp_path / "host_key")
    configuration = tmp_path / "sshd_config"
    configuration.write_text(f"Include {SHIPPED_SETTINGS}\nHostKey {tmp_path}/host_key\n{CARELESS}")

    def in_force(user: str) -> dict[str, str]:
        connection = f"user={user},host=h,addr=192.0.2.1,laddr=192.0.2.2,lport=22"
        said = subprocess.run(
            ["/usr/sbin/sshd", "-T", "-f", str(configuration), "-C", connection],
            capture_output=True,
            text=True,
            check=False,
        )
        assert said.returncode == 0, said.stderr
        pairs = (line.partition(" ") for line in said.stdout.splitlines())
        return {keyword: value for keyword, _, value in pairs}

    ours, theirs = in_force("borg-pull"), in_force("root")
    keywords = [setting.keyword.lower() for setting in SETTINGS]
    assert {keyword: ours[keyword] for keyword in keywords} == {
        setting.keyword.lower(): setting.value for setting in SETTINGS
    }
    assert [keyword for keyword in keywords if ours[keyword] == theirs[keyword]] == []
