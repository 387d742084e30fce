"""One exception family: what was given, and what to do about it, in one line.

The command line prints ``str(error)`` and exits with code 2; a traceback appears only with ``--debug``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Vision3DError(Exception):
    """Base of every error that a person can mend.

    Args:
        message: what was given and why it cannot be used.
        hint: what to do instead; appended after a semicolon.

    Attributes:
        details: what ``--json`` prints besides, such as what was finished before.
    """

    details: Mapping[str, Any] | None = None

    def __init__(self, message: str, hint: str | None = None) -> None:
        self.message = " ".join(message.split())
        self.hint = " ".join(hint.split()) if hint else None
        super().__init__(f"{self.message}; {self.hint}" if self.hint else self.message)


class InputError(Vision3DError):
    """An image, folder, video or argument that cannot be used."""


class OutputError(Vision3DError):
    """Results that cannot be written: no permission, full disk, a file in the way."""


class WeightsError(Vision3DError):
    """A checkpoint that is missing, damaged, of another model, or that would execute code."""


class ResourceError(Vision3DError):
    """A device, memory budget or optional package that is not there."""


def check_seed(seed: int) -> None:
    """Refuses what torch's generators do not take.

    Raises:
        InputError: naming the seed.
    """
    if not -(2**63) <= seed < 2**64:
        raise InputError(f"seed {seed}", "give a whole number of at most 64 bits")
