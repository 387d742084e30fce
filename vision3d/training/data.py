"""Batches from the procedural world: index → the same crops, flips and augmentation, always.

A batch is a pure function of (seed, index). So a run resumes exactly without saving any iterator, any number
of worker processes gives the same numbers, and ``n`` machines simply take every ``n``-th batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from vision3d.errors import InputError

if TYPE_CHECKING:
    from vision3d.synthetic import Sample

FIELDS = ("image", "clean", "depth", "normals", "semantic", "K", "caption")
HELD_OUT_SEED = 900_000_000
"""First seed of the scenes that no training may see; training seeds are far below."""


class SampleSource(Protocol):
    """``Sample``-like objects by index: a ``ShardCache``, :class:`RenderedWorld`, or a folder of photographs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class RenderedWorld:
    """Samples rendered when they are asked for.

    Args:
        first_seed: seed of sample 0; sample ``i`` has seed ``first_seed + i``.
        count: number of samples.
        size: height and width in pixels.
    """

    first_seed: int = 0
    count: int = 1_000_000
    size: tuple[int, int] = (160, 160)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        from vision3d.synthetic import render_sample

        if not 0 <= index < self.count:
            raise IndexError(index)
        return render_sample(self.first_seed + index, size=self.size)

    def describe(self) -> dict[str, Any]:
        """Seed range and size, for the record of a training."""
        return {
            "source": "rendered while training",
            "seeds": [self.first_seed, self.first_seed + self.count],
            "size": list(self.size),
        }


def open_source(
    data: Path | None,
    size: tuple[int, int] = (160, 160),
    *,
    held_out: bool = False,
    pictures: Sequence[str] | None = None,
) -> SampleSource:
    """The rendered cache or the photographs in ``data``, or the world rendered on the fly when it is None.

    Args:
        data: folder of shards, or of photographs as :mod:`vision3d.training.pictures` says.
        size: height and width of what is rendered.
        held_out: scenes that no training may see are welcome.
        pictures: fields that the task reads of a sample, if photographs can have them; None for tasks that need more.

    Raises:
        InputError: the folder is missing, is no cache, is empty or damaged, or holds held-out scenes.
    """
    if data is None:
        return RenderedWorld(size=size)
    if not data.is_dir():
        raise InputError(
            f"there is no folder {data}", "give the folder of a rendered cache, or leave --data out"
        )
    from vision3d.synthetic import ShardCache

    source = ShardCache(data)
    if source.damaged:
        raise InputError(
            f"the shard {source.damaged[0]} is damaged",
            "`vision3d synthesize --shards` with its seeds renders it again; or remove it",
        )
    if len(source) == 0:
        from vision3d.training.pictures import PictureFolder

        photos = PictureFolder(data, tuple(pictures or ()))
        if pictures is not None and len(photos):
            return photos
        if len(photos):
            raise InputError(
                f"{data} holds photographs, where this task needs rendered scenes",
                "make some with `vision3d synthesize --shards`",
            )
        hint = " or give photographs with labels beside them" if pictures is not None else ""
        raise InputError(f"the folder {data} holds no samples", f"render some first{hint}")
    if not held_out and (last := int(source.seeds().max())) >= HELD_OUT_SEED:
        raise InputError(
            f"{data} holds scene {last}, which is for evaluation", f"train on seeds below {HELD_OUT_SEED}"
        )
    return source


def describe_source(source: SampleSource) -> dict[str, Any]:
    """What a source holds, as JSON without paths: runs of seeds as [first, last + 1], and their size.

    Where sizes differ, there is one for every run. "handheld" lists the runs of that kind where there are some.
    """
    describe = getattr(source, "describe", None)
    if describe is not None:
        return dict(describe())
    from vision3d.synthetic import ShardCache

    assert isinstance(source, ShardCache)
    runs: list[list[int]] = []
    kinds: list[tuple[list[int], bool]] = []  # size and whether hand-held, of every run
    for (first, count), size, handheld in zip(source.shards, source.sizes, source.handheld, strict=True):
        if runs and runs[-1][1] == first and kinds[-1] == (list(size), handheld):
            runs[-1][1] += count
        else:
            runs.append([first, first + count])
            kinds.append((list(size), handheld))
    sizes = [size for size, _ in kinds]
    result = {"source": "rendered cache", "samples": len(source), "seeds": runs}
    result |= {"size": sizes[0]} if all(s == sizes[0] for s in sizes) else {"sizes": sizes}
    held = [run for run, (_, handheld) in zip(runs, kinds, strict=True) if handheld]
    return result | ({"handheld": held} if held else {})


def describe_run(preset: str, recipe: Any, source: SampleSource, init: Any) -> dict[str, Any]:
    """What defines a run, see :meth:`vision3d.training.task.Task.describe`.

    Args:
        preset: its name.
        recipe: dataclass of the preset's settings. Learning rate and length are left out: those are the trainer's, and
            may change on resumption.
        source: the samples.
        init: checksums of what it starts from, or None.
    """
    settings = {name: value for name, value in asdict(recipe).items() if name not in ("lr", "train_steps")}
    return {"preset": preset, "recipe": settings, "data": describe_source(source), "init": init}


def captions_of(source: SampleSource, limit: int = 4096) -> list[str]:
    """Captions spread evenly over a source; far fewer where each one costs a rendering."""
    if isinstance(source, RenderedWorld):
        limit = min(limit, 256)
    positions = np.unique(np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int))
    caption = getattr(source, "caption", None) or (lambda position: source[position].caption)
    return [caption(int(position)) for position in positions]


@dataclass
class WorldBatches:
    """Random crops of samples, augmented, as stacked tensors.

    Args:
        source: the samples.
        batch_size: images in a batch.
        size: side of the square output crops in pixels, or their height and width.
        seed: with the index it fixes everything random.
        fields: what to return, of :data:`FIELDS`. ``image`` (B, 3, S, S) float in [0, 1], augmented;
            ``clean`` the same before photometric augmentation; ``depth`` (B, S, S) metres with inf for sky;
            ``normals`` (B, 3, S, S), zero for sky; ``semantic`` (B, S, S) int64 with 255 for none; ``K``
            (B, 3, 3) intrinsics of the crop; ``caption`` list of str.
        scale: smallest and largest side of the crop as a share of the sample's shorter side (at most 1).
        flip: mirror half of the crops.
        photometric: share of the images that get the strong photometric augmentation.
        turn: half of the crops are turned in the image plane, by a normal distribution of this width in degrees.
    """

    source: SampleSource
    batch_size: int
    size: int | tuple[int, int]
    seed: int = 0
    fields: Sequence[str] = ("image", "caption")
    scale: tuple[float, float] = (0.6, 1.0)
    flip: bool = True
    photometric: float = 0.8
    turn: float = 0.0
    _order: tuple[int, np.ndarray] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        unknown = set(self.fields) - set(FIELDS)
        if unknown:
            raise ValueError(f"unknown fields {sorted(unknown)}, known are {FIELDS}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {self.scale} is not an increasing pair in (0, 1]")

    def __getitem__(self, index: int) -> dict[str, Any]:
        examples = [self.example(index * self.batch_size + j) for j in range(self.batch_size)]
        return {
            name: [e[name] for e in examples]
            if name == "caption"
            else torch.stack([e[name] for e in examples])
            for name in self.fields
        }

    def sample_index(self, position: int) -> int:
        """Which sample stands at a position of the endless stream: every epoch is a new permutation."""
        epoch, offset = divmod(position, len(self.source))
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self.seed, 1, epoch)).permutation(len(self.source))
            self._order = (epoch, order)
        return int(self._order[1][offset])

    def example(self, position: int) -> dict[str, Any]:
        """One augmented crop of the stream, see the class for the fields."""
        rng = np.random.default_rng((self.seed, 2, position))
        sample = self.source[self.sample_index(position)]
        return augmented_crop(
            sample, self.size, rng, self.fields, self.scale, self.flip, self.photometric, self.turn
        )


def augmented_crop(
    sample: Any,  # a Sample, or what else has the attributes that `fields` name
    size: int | tuple[int, int],
    rng: np.random.Generator,
    fields: Sequence[str],
    scale: tuple[float, float] = (1.0, 1.0),
    flip: bool = False,
    photometric: float = 0.0,
    turn: float = 0.0,
) -> dict[str, Any]:
    """A crop of a ``Sample``, resized to ``size``; arguments and result as in :class:`WorldBatches`.

    With the defaults it is the largest central crop of that shape, unchanged but for its size. Depth stays
    z-depth: a crop, a turned and a mirror image are what a camera with other intrinsics or roll sees; ``K`` and
    normals follow. Samples whose pixels are not square are not turned.
    """
    height, width = sample.image.shape[:2]
    target = (size, size) if isinstance(size, int) else size
    angle = 0.0
    if turn and rng.random() < 0.5:
        angle = math.radians(turn) * float(np.clip(rng.standard_normal(), -2.5, 2.5))
        if not math.isclose(sample.K[0, 0], sample.K[1, 1], rel_tol=1e-3):
            angle = 0.0
    c, s = abs(math.cos(angle)), abs(math.sin(angle))
    box = (c * target[0] + s * target[1], s * target[0] + c * target[1])  # around the turned crop
    share = min(height / box[0], width / box[1]) * rng.uniform(*scale)
    tall, wide = (max(1, round(side * share)) for side in target)
    high, broad = min(height, round(box[0] * share)), min(width, round(box[1] * share))
    y = int(rng.integers(0, height - high + 1)) if scale[0] < 1 else (height - high) // 2
    x = int(rng.integers(0, width - broad + 1)) if scale[0] < 1 else (width - broad) // 2
    mirrored = flip and rng.random() < 0.5
    turned = _Turned(angle, (x + broad / 2, y + high / 2), (tall, wide)) if angle else None

    def window(values: np.ndarray, smooth: bool = False) -> np.ndarray:
        if turned:
            return turned.crop(values, smooth)
        return values[y : y + tall, x : x + wide]

    result: dict[str, Any] = {}
    if "caption" in fields:
        result["caption"] = sample.caption
    if "image" in fields or "clean" in fields:
        clean = _resized(window(sample.image, smooth=True), target, smooth=True)
        clean = clean[:, ::-1] if mirrored else clean
        image = np.ascontiguousarray(clean)
        if "clean" in fields:
            result["clean"] = _image_tensor(image)
        if "image" in fields:
            if rng.random() < photometric:
                from vision3d.synthetic import augment

                image = augment(image, rng)
            result["image"] = _image_tensor(image)
    for name in ("depth", "normals", "semantic"):
        if name in fields:
            values = _resized(window(np.asarray(getattr(sample, name))), target, smooth=False)
            if name == "normals" and turned:
                values = turned.vectors(values)
            values = np.ascontiguousarray(values[:, ::-1] if mirrored else values)
            if name == "normals":
                tensor = torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1).contiguous()
                result[name] = tensor * torch.tensor([-1.0 if mirrored else 1.0, 1.0, 1.0])[:, None, None]
            else:
                result[name] = torch.from_numpy(values.astype(np.int64 if name == "semantic" else np.float32))
    if "K" in fields:
        intrinsics = np.array(sample.K, dtype=np.float64)
        intrinsics[:2, 2] = turned.point(intrinsics[:2, 2]) if turned else intrinsics[:2, 2] - (x, y)
        intrinsics[0] *= target[1] / wide
        intrinsics[1] *= target[0] / tall
        if mirrored:
            intrinsics[0, 2] = target[1] - intrinsics[0, 2]
        result["K"] = torch.from_numpy(intrinsics).float()
    return result


@dataclass(frozen=True)
class _Turned:
    """A crop whose rows run at an angle through the image.

    Args:
        angle: radians, from the image's x axis towards its y axis.
        centre: x, y of its middle in the image, pixel centres at +0.5.
        size: height and width in the image's pixels.
    """

    angle: float
    centre: tuple[float, float]
    size: tuple[int, int]

    @property
    def axes(self) -> np.ndarray:
        """(2, 2): the crop's x and y axis, as columns in the image."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        return np.array([[c, -s], [s, c]])

    def crop(self, values: np.ndarray, smooth: bool) -> np.ndarray:
        """The crop of an image (H, W, …); geometry and labels take the nearest pixel."""
        import cv2

        tall, wide = self.size
        offset = np.array(self.centre) - 0.5 - self.axes @ ((wide - 1) / 2, (tall - 1) / 2)
        to_image = np.column_stack([self.axes, offset])
        method = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
        flags = method | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(values, to_image, (wide, tall), flags=flags, borderMode=cv2.BORDER_REPLICATE)

    def point(self, xy: np.ndarray) -> np.ndarray:
        """Where a point of the image lies in the crop."""
        return self.axes.T @ (xy - np.array(self.centre)) + (self.size[1] / 2, self.size[0] / 2)

    def vectors(self, normals: np.ndarray) -> np.ndarray:
        """(H, W, 3) vectors in the frame of a camera rolled along."""
        return np.concatenate([normals[..., :2] @ self.axes, normals[..., 2:]], -1)


def _image_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 → (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255.0


def _resized(values: np.ndarray, size: tuple[int, int], smooth: bool) -> np.ndarray:
    """Array resized to ``size`` (height, width); labels and geometry take the nearest pixel, never a mixture."""
    if values.shape[:2] == size:
        return values
    if not smooth:
        # Centre-aligned nearest neighbour, the same rule as the pixel-area resize of the image.
        rows, columns = (
            np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
            for new, old in zip(size, values.shape[:2], strict=True)
        )
        return values[rows[:, None], columns[None, :]]
    import cv2

    method = cv2.INTER_AREA if size[0] < values.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(values, size[::-1], interpolation=method)
