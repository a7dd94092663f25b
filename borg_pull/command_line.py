"""Running a click command line: one line for whatever goes wrong, and its exit code."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

import click

from borg_pull.errors import BorgPullError, InternalError, RequestError, SystemRefusedError
from borg_pull.output import abandon_output

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def run(cli: click.Command, program: str) -> int:
    """Run ``cli`` on the process's own arguments; the exit code is one of ``docs/protocol.md``."""
    for stream in (sys.stdout, sys.stderr):
        # What the terminal's character set lacks is escaped; it must not end the program.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(cli, program)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BorgPullError as error:
        click.echo(f"{program}: {error.line()}", err=True)
        return error.exit_code


def _run(cli: click.Command, program: str) -> int:
    """Run the command line. Raises BorgPullError for everything that can go wrong."""
    try:
        code = cli.main(prog_name=program, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return RequestError.exit_code
    except click.Abort as error:
        raise KeyboardInterrupt from error
    except click.ClickException as error:
        raise _usage_error(error, program) from error
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


def _usage_error(error: click.ClickException, program: str) -> RequestError:
    message = error.format_message().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"see {program if context is None else context.command_path} --help"
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
