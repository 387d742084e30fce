"""Recipe parameters: every weight of a network from its checkpoint name, its shape and a seed.

Two implementations that use the same names hold the same numbers, so one's outputs can be demanded of the
other without any trained weight. The values, for a tensor of shape s and standard normal draws z:

======================================  ==============================
matrices and kernels                    z / sqrt(s[1] * s[2] * ...)
vectors ``*bias``, ``*running_mean``    0.02 z
vectors ``*running_var``                1 + 0.02 abs(z)
other vectors (norms, layer scale)      1 + 0.02 z
scalars (counters)                      0
======================================  ==============================

The draws come from NumPy's PCG64, seeded with the first eight bytes (little endian) of the SHA-256 of
"seed:name". They are double precision rounded to single before they are scaled in single precision.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
_CHUNK = 1 << 20


def tensor(name: str, shape: Shape, seed: int = 0) -> np.ndarray:
    """Recipe values of one parameter, float32 of ``shape``.

    Args:
        name: complete key in the published checkpoint.
        shape: of the parameter there.
        seed: of the fixture.
    """
    if not shape:
        return np.zeros((), np.float32)
    values = _normal(name, shape, seed)
    if len(shape) > 1:
        values /= np.float32(math.sqrt(max(1, math.prod(shape[1:]))))
        return values
    centre = np.float32(0 if name.endswith(("bias", "running_mean")) else 1)
    if name.endswith("running_var"):
        np.abs(values, out=values)
    return centre + np.float32(0.02) * values


def _normal(name: str, shape: Shape, seed: int) -> np.ndarray:
    """Standard normal draws as float32, made piece by piece so that the doubles take little memory."""
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(key, "little")))
    values = np.empty(math.prod(shape), np.float32)
    for start in range(0, values.size, _CHUNK):
        part = values[start : start + _CHUNK]
        part[:] = generator.standard_normal(part.size)
    return values.reshape(shape)


def state_dict(shapes: Mapping[str, Shape], seed: int = 0) -> dict[str, np.ndarray]:
    """Recipe values of every ``name: shape``."""
    return {name: tensor(name, tuple(shape), seed) for name, shape in shapes.items()}


def fill(module: torch.nn.Module, seed: int = 0, prefix: str = "") -> None:
    """Give every floating parameter and buffer of a module its recipe values, in place.

    Args:
        module: with storage (not on the meta device).
        seed: of the fixture.
        prefix: what the published checkpoint puts before the module's own names.
    """
    import torch

    with torch.no_grad():
        for name, value in module.state_dict(keep_vars=True).items():
            if value.is_floating_point():
                value.copy_(torch.from_numpy(tensor(prefix + name, tuple(value.shape), seed)))


class RecipeWeights(Mapping[str, "torch.Tensor"]):
    """A checkpoint of recipe values whose tensors are made when they are asked for and not kept.

    Lets a network of published width be filled without ever holding its weights twice.

    Args:
        shapes: complete checkpoint names and shapes.
        seed: of the fixture.
        prefix: what the recipe puts before these names.
    """

    def __init__(self, shapes: Mapping[str, Shape], seed: int = 0, prefix: str = "") -> None:
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.seed, self.prefix = seed, prefix

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch

        return torch.from_numpy(tensor(self.prefix + name, self.shapes[name], self.seed))

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)
