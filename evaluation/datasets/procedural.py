"""Held-out images of the procedural world: exact depth, scenes that no training may see.

Sky is not scored; everything farther than the street benchmark's 80 m is left out as there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.evaluation.datasets.base import DepthDataset, DepthSample
from vision3d.evaluation.protocols import DepthRange

PROCEDURAL_RANGE = DepthRange(1e-3, 80.0)
# Training measures its progress on the first held-out seeds and may stop by them. The test set starts later,
# at a whole shard of a rendered cache; three consecutive seeds show one scene: 600 images, 200 scenes.
TEST_SEEDS = range(900_300_000, 900_300_600)


class Procedural(DepthDataset):
    """Images rendered from seeds, or read from rendered shards; ``group`` is the kind of scene.

    Args:
        seeds: of the scenes, when they are rendered.
        shards: folder of rendered shards to read instead; ``seeds`` is then unused.
        size: (height, width) of rendered images.
        keep: keep decoded samples in memory, for several passes over a rendered set.
        normals: give samples their normals, too.

    Raises:
        InputError: no such folder, empty, or a scene that training may have seen.
    """

    name = "procedural"
    range = PROCEDURAL_RANGE

    def __init__(
        self,
        seeds: Sequence[int] = TEST_SEEDS,
        *,
        shards: str | Path | None = None,
        size: tuple[int, int] = (160, 160),
        keep: bool = False,
        normals: bool = False,
    ) -> None:
        self.size = size
        self._normals = normals
        self._kept: dict[int, DepthSample] | None = {} if keep else None
        self._source: Any = None
        if shards is not None:
            from vision3d.training.data import open_source

            self._source = open_source(Path(shards), size, held_out=True)
            self._names = [f"{index:06d}" for index in range(len(self._source))]
        else:
            self._seeds = list(seeds)
            self._names = [f"seed_{seed}" for seed in self._seeds]
        if not self._names:
            raise InputError("no scenes of the procedural world", "give at least one seed")
        if shards is None:
            _refuse_training_seed(min(self._seeds))

    @property
    def names(self) -> Sequence[str]:
        """See :class:`DepthDataset`."""
        return self._names

    @property
    def identity(self) -> dict[str, Any]:
        """The seeds and size, and the shards' folder; see :class:`DepthDataset`."""
        if self._source is None:
            return {**super().identity, "size": list(self.size)}
        from vision3d.training.data import describe_source

        return {"root": str(self._source.folder.resolve()), **describe_source(self._source)}

    def __getitem__(self, index: int) -> DepthSample:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        name = self._names[index]
        if self._source is not None:
            sample = self._source[index]
            _refuse_training_seed(int(sample.seed))
        else:
            from vision3d.synthetic import render_sample

            sample = render_sample(self._seeds[index], self.size)
        depth = np.where(np.isfinite(sample.depth), sample.depth, 0).astype(np.float32)
        height, width = depth.shape
        result = DepthSample(
            name,
            sample.kind,
            np.asarray(sample.image),
            depth,
            self.range.contains(depth),
            Intrinsics.from_K(sample.K, width, height),
            np.asarray(sample.normals, np.float32) if self._normals else None,
        )
        if self._kept is not None:
            self._kept[index] = result
        return result


def training_samples(
    count: int, shards: Path | None, size: tuple[int, int], *, description: str = "training scenes"
) -> Iterator[Any]:
    """Samples of the training world that image-independent answers are learned from, with a progress bar.

    Args:
        count: at most so many.
        shards: folder of rendered training shards; rendered from training seeds without it.
        size: (height, width) of rendered images.
        description: of the bar.

    Raises:
        InputError: no such folder, or empty.
    """
    from vision3d.progress import progress
    from vision3d.training.data import open_source

    source = open_source(shards, size)
    count = min(count, len(source))
    # Spread over the whole source: shards may be ordered.
    chosen = np.unique(np.linspace(0, len(source) - 1, count).astype(int)) if shards else np.arange(count)
    for index in progress(chosen.tolist(), description=description):
        yield source[index]


def _refuse_training_seed(seed: int) -> None:
    from vision3d.training.data import HELD_OUT_SEED

    if seed < HELD_OUT_SEED:
        raise InputError(
            f"scene {seed} of the procedural world may have been trained on",
            f"evaluate on seeds from {HELD_OUT_SEED} on",
        )
