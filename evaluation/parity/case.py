"""One fixture: a description in JSON, its arrays, and what the runner may ask of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vision3d.errors import InputError
from vision3d.io.files import DAMAGED

if TYPE_CHECKING:
    import torch

SLOW_MARK = "real_width"
"""In the name or kind of cases at published width, which need several GB and minutes."""


class BrokenFixture(Exception):
    """A file that claims to be a fixture and cannot be run; says what is wrong with it."""


class UnknownVariant(BrokenFixture):
    """A fixture of a known kind that asks for what the check of its kind does not know; says what that is."""


@dataclass(frozen=True, eq=False)
class Case:
    """A fixture.

    Attributes:
        path: its JSON file.
        meta: the JSON's content.
    """

    path: Path
    meta: dict[str, Any]

    @property
    def system(self) -> str:
        """Which method it belongs to; the name of the module with its checks."""
        return str(self.meta["system"])

    @property
    def kind(self) -> str:
        """What is computed; several cases may share a kind."""
        return str(self.meta["kind"])

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @property
    def is_slow(self) -> bool:
        """Whether it runs only when slow cases are asked for."""
        return SLOW_MARK in self.name or SLOW_MARK in self.kind

    @property
    def config(self) -> Any:
        """The network configuration, or None."""
        return self.meta.get("config")

    @property
    def outputs(self) -> dict[str, dict[str, Any]]:
        """What is to be reproduced: name → tolerances and options."""
        return self.meta["outputs"]

    @property
    def recipe_seed(self) -> int:
        """Seed of the recipe parameters."""
        return int(self.meta["recipe_seed"])

    @cached_property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """The stored arrays, read when asked for.

        Raises:
            BrokenFixture: not a NumPy archive.
        """
        try:
            return np.load(self.path.with_suffix(".npz"), allow_pickle=False)
        except DAMAGED as error:
            raise BrokenFixture(f"its .npz cannot be read ({error})") from error

    def tensor(self, name: str) -> torch.Tensor:
        """A stored array as a CPU tensor of the same type."""
        import torch

        return torch.from_numpy(np.array(self.arrays[name]))

    def close(self) -> None:
        """Close the archive."""
        if "arrays" in self.__dict__:
            self.arrays.close()  # type: ignore[attr-defined]


def find_cases(folder: Path) -> Iterator[Case | tuple[Path, str]]:
    """Go through the fixtures under ``folder``, at any depth, in order of their paths.

    Tables (JSON files without arrays and without a kind) are passed over. A file that claims to be a fixture
    and cannot be one comes as (path, reason), so that nothing is skipped in silence.

    Raises:
        InputError: no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}", "give a folder of fixtures")
    found = False
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".npz")):
        if path.suffix == ".npz":
            if not path.with_suffix(".json").exists():
                found = True
                yield path, "no .json beside it"
            continue
        case = _open_case(path)
        if case is not None:
            found = True
            yield case
    if not found:
        raise InputError(f"{folder} holds no fixtures", "a fixture is a .json file with a .npz beside it")


def _open_case(path: Path) -> Case | tuple[Path, str] | None:
    with_arrays = path.with_suffix(".npz").is_file()
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return path, f"not readable as JSON ({error})"
    if not isinstance(meta, dict) or "kind" not in meta:
        return (path, 'no "kind" in it') if with_arrays else None
    if not with_arrays:
        return path, "no .npz beside it"
    missing = [key for key in ("system", "outputs") if not meta.get(key)]
    if missing:
        return path, f'no "{missing[0]}" in it'
    if not isinstance(meta["outputs"], dict) or not all(
        isinstance(o, dict) for o in meta["outputs"].values()
    ):
        return path, '"outputs" is not a table of options'
    return Case(path, meta)
