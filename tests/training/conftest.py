"""A tiny stand-in for the rendered world: random pictures behind the same interface."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest


@dataclass(frozen=True)
class NoiseWorld:
    """Samples of smooth random pictures, with every map a training may ask for."""

    count: int = 32
    size: tuple[int, int] = (40, 48)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> SimpleNamespace:
        h, w = self.size
        rng = np.random.default_rng(index)
        y, x = np.mgrid[:h, :w]
        phase = rng.uniform(0, 6, 3)
        waves = np.sin(x[..., None] / 17 + phase) * np.cos(y[..., None] / 13 + phase)
        depth = (2 + y / h + 0.01 * index).astype(np.float32)
        depth[:4] = np.inf
        normals = np.zeros((h, w, 3), np.float32)
        normals[4:] = (0.6, 0.0, -0.8)
        return SimpleNamespace(
            image=(127 + 100 * waves).astype(np.uint8),
            depth=depth,
            normals=normals,
            semantic=np.where(x > w // 2, 3, 255).astype(np.uint8),
            K=np.array([[50.0, 0, w / 2], [0, 50.0, h / 2], [0, 0, 1]]),
            caption=f"a picture of {'red' if index % 2 else 'blue'} waves",
            seed=index,
        )

    def describe(self) -> dict:
        return {"source": "noise", "samples": self.count}


@pytest.fixture(scope="session")
def world() -> NoiseWorld:
    return NoiseWorld()
