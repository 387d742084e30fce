"""Exported components, and training states that appear whole and load without executing code."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vision3d.errors import InputError, WeightsError
from vision3d.io.files import staged_folder
from vision3d.progress import no_library_bars

STEP_PREFIX = "step-"


def export_component(module: nn.Module, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a diffusers or transformers module as its usual folder: ``config.json`` and safetensors.

    The values are rounded to ``dtype``. Raises WeightsError when one of them is not finite in it.
    """
    # The base method: diffusers' own warns about casting, which is what is meant here.
    rounded = nn.Module.to(copy.deepcopy(module), "cpu", dtype)
    for name, value in rounded.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise WeightsError(
                f"{name} of {folder.name} is not finite in {dtype}", "the training has diverged"
            )
    with staged_folder(folder, last="config.json") as temporary, no_library_bars():
        rounded.save_pretrained(temporary, safe_serialization=True)  # type: ignore[operator]
        config = json.loads((temporary / "config.json").read_text())
        config.pop("_name_or_path", None)  # a path of the machine that trained
        (temporary / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Safetensors file of tensors on any device and in any memory format."""
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Inverse of :func:`save_tensors`. Raises WeightsError for a missing or damaged file."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise WeightsError(
            f"cannot read {path}: {error}", "remove this checkpoint to use the one before"
        ) from error


def split_optimizer_state(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimiser's ``state_dict`` as flat tensors (``"<parameter>.<name>"``) and JSON-able groups."""
    tensors = {
        f"{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entries in state["state"].items()
        for name, value in entries.items()
    }
    return tensors, [dict(group) for group in state["param_groups"]]


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Put a split state back. Raises WeightsError when it belongs to other parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (ValueError, KeyError) as error:
        raise WeightsError(f"the optimiser's state does not fit: {error}", "start in a new --out") from error
    # Moments must lie in memory as their parameter does (channels_last): the fused loops of the optimiser
    # round differently otherwise, and a resumed run would leave the uninterrupted one in the last bit.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
                    optimizer.state[parameter][name] = torch.empty_like(parameter, dtype=value.dtype).copy_(
                        value
                    )


def random_states() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """States of Python's, numpy's and torch's generators as JSON and tensors."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - libraries may draw from it
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return {
        "python": [version, list(internal), gauss],
        "numpy": [str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
    }, tensors


def set_random_states(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`random_states` returned; CUDA generators only as far as there are devices."""
    version, internal, gauss = values["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = values["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"cuda{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda{i}"], i)


@contextlib.contextmanager
def kept_random_states() -> Iterator[None]:
    """Leave the generators as they were, so that how often one looks at a run does not change it."""
    values, tensors = random_states()
    try:
        yield
    finally:
        set_random_states(values, tensors)


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the most steps, or None."""
    found = sorted(p for p in folder.glob(f"{STEP_PREFIX}*") if (p / "state.json").is_file())
    return found[-1] if found else None


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints."""
    for path in sorted(folder.glob(f"{STEP_PREFIX}*"))[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def require_same_task(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise InputError naming the first settings in which a checkpoint differs from the run at hand."""
    # Through JSON, where a tuple and a list are the same.
    now = json.loads(json.dumps(now))
    different = sorted(key for key in {*saved, *now} if saved.get(key) != now.get(key))
    if different:
        shown = ", ".join(f"{key} was {saved.get(key)!r} and is {now.get(key)!r}" for key in different[:3])
        raise InputError(
            f"the checkpoint is of another run: {shown}", "repeat the settings or use a new --out"
        )
