"""What stands around a request on this host: programs, clock and name.

The forced command and the admin's program find these through the same functions, so that what
the one explains is what the other does.
"""

from __future__ import annotations

import os
import sys
import time

from borg_pull.source.judge import Context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from borg_pull.source.whitelist import Settings


def current_context() -> Context:
    """What placeholders stand for at this moment on this host."""
    now = time.time()
    return Context(
        hostname=os.uname().nodename,
        local_time=time.localtime(now),
        utc_time=time.gmtime(now),
    )


def socket_wrapper(settings: Settings) -> str:
    """The wrapper from the configuration, else the one beside this program."""
    return settings.runtime.socket_wrapper or program_beside("borg-pull-socket-wrap")


def program_beside(name: str) -> str:
    """Path of another program of the installation the running one belongs to."""
    return os.path.join(os.path.dirname(sys.executable), name)
