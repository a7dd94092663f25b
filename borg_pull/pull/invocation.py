"""What a command line chose: the configuration, read when a command first asks for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import click

from borg_pull.output import print_error

if TYPE_CHECKING:
    from borg_pull.pull.config import Config
    from borg_pull.pull.places import Places

P = ParamSpec("P")
R = TypeVar("R")


class Invocation:
    """One run of the program."""

    def __init__(self) -> None:
        self.chosen: Path | None = None
        """What ``--config`` names."""
        self.is_tolerant = False
        """Whether a file beside the main one that is wrong is told of and left out."""

    @property
    def path(self) -> Path:
        """The configuration's main file, absolute."""
        # Late, as below: `--help` and `--version` need no configuration, whose models are most
        # of a start.
        from borg_pull.pull.config import default_path

        return (self.chosen or default_path()).absolute()

    @cached_property
    def config(self) -> Config:
        """The configuration. Raises ConfigFaultsError.

        It must be whole, unless this is tolerant.
        """
        from borg_pull.pull.config import load

        found = load(self.path, whole=not self.is_tolerant)
        if found.faults:
            from borg_pull.pull.faults import ConfigFaultsError

            print_error(f"borg-pull: {ConfigFaultsError(found.faults).line()}", "yellow")
        return found

    @cached_property
    def places(self) -> Places:
        """The places of the configuration, made where missing. Raises ConfigurationError."""
        from borg_pull.pull.places import Places

        places = Places.of(self.config.settings)
        places.prepare()
        return places


def _choose(context: click.Context, _option: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(Invocation).chosen = Path(value)


config_option = click.option(
    "--config",
    metavar="FILE",
    type=click.Path(readable=False),
    expose_value=False,
    callback=_choose,
    help="The configuration.  [default: $BORG_PULL_CONFIG, ~/.config/borg-pull/pull.toml if it "
    "exists, else /etc/borg-pull/pull.toml]",
)
"""Taken by the program and by each command, so that it may stand before and behind its name."""


def configured(command: Callable[Concatenate[Invocation, P], R]) -> Callable[P, R]:
    """Give ``command``, under its click decorators, ``--config`` and the `Invocation`."""
    return config_option(click.make_pass_decorator(Invocation, ensure=True)(command))


def tolerant(command: Callable[Concatenate[Invocation, P], R]) -> Callable[P, R]:
    """The same, for a command that goes on with the files of the configuration that are sound."""

    @wraps(command)
    def tolerating(invocation: Invocation, /, *arguments: P.args, **options: P.kwargs) -> R:
        invocation.is_tolerant = True
        return command(invocation, *arguments, **options)

    return configured(tolerating)
