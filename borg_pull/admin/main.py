"""``borg-pull-admin``: the admin's side of the source; none of it runs borg or needs privilege."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

import click

from borg_pull import __version__
from borg_pull.admin.audit import audit
from borg_pull.admin.authorized_keys import authorized_keys
from borg_pull.admin.check import check
from borg_pull.admin.explain import explain
from borg_pull.admin.output import abandon_output
from borg_pull.errors import BorgPullError, InternalError, RequestError, SystemRefusedError

PROGRAM = "borg-pull-admin"
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


# No -h: explain takes a request that may begin with a dash, where it would be found in any word.
@click.group()
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def cli() -> None:
    """Check and explain the whitelist of a source, print the keys that may log in, and read the
    audit log.

    Nothing here runs borg or changes anything. Exit codes: 0, or 64 for a wrong command line, 70
    for a fault of this program, 71 when the system refuses, 78 when the configuration is wrong.
    """


cli.add_command(audit)
cli.add_command(authorized_keys)
cli.add_command(check)
cli.add_command(explain)


def main() -> int:
    """Run one command; the exit code is one of ``docs/protocol.md``."""
    for stream in (sys.stdout, sys.stderr):
        # What the terminal's character set lacks is escaped; it must not end the program.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BorgPullError as error:
        _say(error.line())
        return error.exit_code


def _run() -> int:
    """Run the command line. Raises BorgPullError for everything that can go wrong."""
    try:
        code = cli.main(prog_name=PROGRAM, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return RequestError.exit_code
    except click.Abort as error:
        raise KeyboardInterrupt from error
    except click.ClickException as error:
        raise _usage_error(error) from error
    except BorgPullError:
        raise
    except SystemExit:
        # click's way to say that nobody reads its help.
        abandon_output()
        return 0
    except OSError as error:
        abandon_output()
        raise SystemRefusedError(_os_message(error)) from error
    except Exception as error:
        raise InternalError(
            f"unexpected {type(error).__name__}: {error}{_place(error)}", "please report it"
        ) from error
    return code if isinstance(code, int) else 0


def _usage_error(error: click.ClickException) -> RequestError:
    message = error.format_message().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"see {PROGRAM if context is None else context.command_path} --help"
    return RequestError(message[:1].lower() + message[1:], hint)


def _os_message(error: OSError) -> str:
    what = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{what}{error.strerror or error}"


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f" at {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"


def _say(line: str) -> None:
    click.echo(f"{PROGRAM}: {line}", err=True)
