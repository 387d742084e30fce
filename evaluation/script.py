"""What the reports of this package share, and the scripts that are run as modules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vision3d.errors import InputError, Vision3DError


class Measured:
    """A command's report of what was measured: a bad score is no error."""

    @property
    def exit_code(self) -> int:
        """Always 0."""
        return 0


def run_script(main: Callable[..., int], arguments: Sequence[str] | None = None) -> int:
    """Command line of a function: parse, run, one line for what went wrong. Returns the exit code."""
    import tyro

    try:
        return tyro.cli(main, args=arguments)
    except Vision3DError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def check_report(out: Path) -> None:
    """Raises InputError when a report would not be a .json file."""
    if out.suffix != ".json":
        raise InputError(f"report {out}", "give a file name that ends in .json")
