"""Threat: the forced command's account stops or kills what root does in its name.

Root writes the audit log, and looks at files, as that account. Where it did so with the account as
its real identity, whoever has the account could send it signals (kill(2)), and a run of Nextcloud
AIO that was stopped in that moment would keep the host's one place for ever. Control: with the
identity that root needs to signal as the account does, and has for a moment, they get through.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from borg_pull.accounts import account_named
from tests.harness.builds import PROJECT
from tests.harness.workplace import Account, Workplace

pytestmark = pytest.mark.needs_root

ACTING = """
import sys
from borg_pull.accounts import account_named, acting_as
with acting_as(account_named(sys.argv[1]), signalling=sys.argv[2] == "True"):
    print("acting", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def account() -> Iterator[Account]:
    workplace = Workplace()
    yield workplace.account()
    workplace.close()


@pytest.mark.parametrize("signalling", [False, True])
def test_who_acts_as_the_account_is_out_of_its_reach(account: Account, signalling: bool) -> None:
    acting = subprocess.Popen(
        [sys.executable, "-c", ACTING, account.name, str(signalling)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert acting.stdout is not None
        assert acting.stdout.readline() == b"acting\n"
        assert os.stat(f"/proc/{acting.pid}").st_uid in (0, account.uid)
        done = subprocess.run(
            [
                *("setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups"),
                *("kill", f"-{signal.SIGSTOP.value}", str(acting.pid)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        acting.kill()
        acting.communicate()
    assert (done.returncode == 0) == signalling, done.stderr
    assert signalling or "not permitted" in done.stderr
    assert account_named(account.name).uid == account.uid
