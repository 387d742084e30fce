"""Which function checks which kind of fixture."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vision3d.evaluation.parity.case import Case

Results = dict[str, Any]
"""Whole tensors by name: torch tensors, arrays, numbers, or whatever a reference in the JSON is made of."""


@dataclass(frozen=True)
class Check:
    """A registered check.

    Attributes:
        run: computes the case's tensors.
        options: output options that the check itself obeys, beyond those of the comparison.
        tensor_of: which returned tensor an output is taken from, given its name and options.
    """

    run: Callable[[Case], Results]
    options: frozenset[str]
    tensor_of: Callable[[str, dict[str, Any]], str]


_CHECKS: dict[tuple[str, str], Check] = {}


def named_by_of(name: str, options: dict[str, Any]) -> str:
    """The tensor that an output's option ``of`` names, by default the one of its own name."""
    return str(options.get("of", name))


def check(
    system: str,
    *kinds: str,
    options: Iterable[str] = (),
    tensor_of: Callable[[str, dict[str, Any]], str] = named_by_of,
) -> Callable[[Callable[[Case], Results]], Callable[[Case], Results]]:
    """Register a function as the check of one or more kinds of a system's fixtures.

    Args:
        system: the fixtures' ``system``; the function must stand in the module of this package with that
            name.
        kinds: the fixtures' ``kind``.
        options: names of output options that the function reads itself; any other that the comparison does
            not know is an error.
        tensor_of: name of the returned tensor that an output is taken from, when ``of`` alone does not say.
    """

    def register(function: Callable[[Case], Results]) -> Callable[[Case], Results]:
        for kind in kinds:
            _CHECKS[system, kind] = Check(function, frozenset(options), tensor_of)
        return function

    return register


def find_check(system: str, kind: str) -> Check | None:
    """The check of a kind, or None; imports the system's module."""
    if (system, kind) not in _CHECKS and re.fullmatch(r"[a-z][a-z0-9_]*", system):
        module = f"{__package__}.{system}"
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)
    return _CHECKS.get((system, kind))


def is_known_system(system: str) -> bool:
    """Whether any kind of a system can be checked."""
    find_check(system, "")
    return any(known == system for known, _ in _CHECKS)
