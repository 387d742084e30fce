"""Correspondence between objects of a category, learned from the procedural world.

Objects come in groups of one category, cut out of their scenes. A patch of one object has to be found in the others of
its group: where a keypoint of that name is, or the point at the same place on the category's shape (see
:mod:`vision3d.synthetic.canonical`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vision3d.errors import InputError
from vision3d.synthetic.canonical import keypoints_in_space, mean_shape, mirrored_name, places_on
from vision3d.synthetic.objects import Instance, instances, square_window
from vision3d.training.data import RenderedWorld, SampleSource

LABELS = 2**24 - 3
"""Classes of keypoints: names are hashed, so that no list of them has to be kept; float32 holds them exactly."""
KEYPOINTS = 24
"""Keypoints per crop, at most."""
SHAPE_OBJECTS = 200
"""Objects whose keypoints make up the shape of a category."""
PLACE_WIDTH, PLACE_REACH = 0.12, 0.25
"""How near patches are on a shape that correspond, and the farthest that do; its keypoints' distance is about 1."""


def keypoint_label(category: str, name: str, mirrored: bool = False) -> int:
    """Class of a named keypoint, from 1; in a mirrored image left is right."""
    shown = mirrored_name(name) if mirrored else name
    return 1 + zlib.crc32(f"{category}|{shown}".encode()) % LABELS


@dataclass(frozen=True)
class CropSettings:
    """What is cut out of scenes.

    Args:
        side: of the large crops in pixels.
        cell: side of the patches in pixels.
        group: images of a category that come together; 0 draws images whatever they show.
        keypoints, places: whether to tell where named keypoints are, and where patches are on the category's shape.
        scale: share of an image's area that a large crop covers, smallest and largest.
        objects: share of the images that are cut around an object with keypoints where images come in no groups;
            others are random squares.
        margin: smallest and largest side of that cut relative to the object.
        flip: mirror half of the images, all crops of one alike, so that left and right stay apart.
        local_side, local_scale: of the small crops, as ``side`` and ``scale``.
        locals: small crops per image.
    """

    side: int
    cell: int
    group: int = 0
    keypoints: bool = False
    places: bool = False
    scale: tuple[float, float] = (0.6, 1.0)
    objects: float = 1.0
    margin: tuple[float, float] = (1.1, 1.6)
    flip: bool = True
    local_side: int = 48
    local_scale: tuple[float, float] = (0.12, 0.4)
    locals: int = 0


@dataclass
class CropBatches:
    """Crops of images around single objects; batch ``k`` depends on the seed and ``k`` alone.

    A batch holds ``large`` (2 B, 3, S, S) and ``small`` (L B, 3, s, s), RGB in [0, 1], crop by crop (all first large
    crops, then all second ones, ...), and ``boxes`` (2 B, 4): top, left, bottom, right of the large crops in a frame
    that both crops of an image share. Where images come in groups there are ``keypoints`` (2 B, 24, 3) of the large
    crops, x, y from 0 to 1 and class, and where they are asked for ``places`` (2 B, N, 4) of their patches on
    the category's shape, the last a 1 for patches that show the object.

    Args:
        source: samples with ``image``, ``object_id``, ``keypoints`` and ``seed``.
        cut: sizes and shares.
        batch_size: images.
        seed: of order, places and augmentation.
    """

    source: SampleSource
    cut: CropSettings
    batch_size: int
    seed: int = 0

    @cached_property
    def categories(self) -> list[list[tuple[int, Instance]]]:
        """The objects of each category, each with the number of its sample."""
        if isinstance(self.source, RenderedWorld):
            raise InputError(
                "objects of a category are drawn from rendered scenes", "give a cache with --data"
            )
        found: dict[str, list[tuple[int, Instance]]] = {}
        for number in range(len(self.source)):
            for instance in instances(self.source[number], min_share=0.015, min_keypoints=2):
                found.setdefault(instance.category, []).append((number, instance))
        return [found[name] for name in sorted(found) if len(found[name]) >= self.cut.group]

    @cached_property
    def shapes(self) -> list[dict[str, np.ndarray]]:
        """The shape of each of :attr:`categories`, of its first objects."""
        return [
            mean_shape(
                keypoints_in_space(self.source[number], instance.object_id)
                for number, instance in members[:SHAPE_OBJECTS]
            )
            for members in self.categories
        ]

    def __getitem__(self, index: int) -> dict[str, Any]:
        examples = [self.example(index * self.batch_size + j) for j in range(self.batch_size)]
        large = [[e[0][i] for e in examples] for i in (0, 1)]
        small = [[e[1][i] for e in examples] for i in range(self.cut.locals)]
        boxes = [[e[2][i] for e in examples] for i in (0, 1)]
        batch: dict[str, Any] = {
            "large": torch.from_numpy(np.stack(large[0] + large[1])).permute(0, 3, 1, 2).float() / 255,
            "boxes": torch.tensor(boxes[0] + boxes[1], dtype=torch.float32),
        }
        if self.cut.keypoints:
            tables = [_keypoints_in(e[3], e[2][i]) for i in (0, 1) for e in examples]
            batch["keypoints"] = torch.from_numpy(np.stack(tables))
        if self.cut.places:
            batch["places"] = torch.from_numpy(np.stack([e[4][i] for i in (0, 1) for e in examples]))
        if small:
            flat = np.stack([crop for group in small for crop in group])
            batch["small"] = torch.from_numpy(flat).permute(0, 3, 1, 2).float() / 255
        return batch

    def example(
        self, position: int
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[list[float]], np.ndarray, list[np.ndarray]]:
        """Large and small crops, the large ones' boxes, keypoints (x, y, class) and the large crops' places (N, 4)."""
        rng = np.random.default_rng((self.seed, 3, position))
        cut = self.cut
        if cut.group:
            category, number, instance = self._one_of_a_group(position)
            sample, object_id = self.source[number], instance.object_id
            top, left, bottom, right = self._around(sample, instance, rng)
        else:
            sample = self.source[int(rng.integers(len(self.source)))]
            top, left, bottom, right = self._subject(sample, rng)
        image = np.asarray(sample.image)[top:bottom, left:right]
        mirrored = cut.flip and rng.random() < 0.5
        if mirrored:
            image = image[:, ::-1]
        points = np.zeros((0, 3), np.float32)
        if cut.keypoints:
            keypoints = sample.keypoints
            rows = keypoints[keypoints["visible"] & (keypoints["object_id"] == object_id)]
            classes = [keypoint_label(str(r["category"]), str(r["name"]), mirrored) for r in rows]
            points = np.stack([rows["x"] - left, rows["y"] - top, classes], 1).astype(np.float32)
            if mirrored:
                points[:, 0] = image.shape[1] - points[:, 0]
        large, small, boxes, places = [], [], [], []
        for _ in range(2):
            box = random_box(image.shape[:2], cut.scale, rng)
            large.append(_crop(image, box, cut.side, rng))
            boxes.append([float(v) for v in box])
            if cut.places:
                pixels = _patch_middles(box, cut.side // cut.cell)
                if mirrored:
                    pixels[:, 0] = image.shape[1] - pixels[:, 0]
                pixels += (left, top)
                on, shown = places_on(sample, object_id, self.shapes[category], pixels)
                on[:, 0] *= -1 if mirrored else 1  # in a mirrored image left is right
                places.append(np.column_stack([on, shown]).astype(np.float32))
        for _ in range(cut.locals):
            box = random_box(image.shape[:2], cut.local_scale, rng)
            small.append(_crop(image, box, cut.local_side, rng))
        return large, small, boxes, points, places

    def _one_of_a_group(self, position: int) -> tuple[int, int, Instance]:
        """Category, sample and object; each ``group`` of positions gets different objects of one category."""
        group = self.cut.group
        rng = np.random.default_rng((self.seed, 5, position // group))
        # frequent categories come more often, but less so than they are there
        weights = np.sqrt([len(members) for members in self.categories])
        category = int(rng.choice(len(weights), p=weights / weights.sum()))
        members = self.categories[category]
        return category, *members[int(rng.choice(len(members), group, replace=False)[position % group])]

    def _subject(self, sample: Any, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """A square (top, left, bottom, right) of the sample, around one of its objects if it has one."""
        wanted = rng.random() < self.cut.objects
        found = instances(sample, min_share=0.015, min_keypoints=1) if wanted else []
        if found:
            return self._around(sample, found[int(rng.integers(len(found)))], rng)
        height, width = np.asarray(sample.image).shape[:2]
        side = round(min(height, width) * rng.uniform(0.5, 1.0))
        top, left = (int(rng.integers(0, length - side + 1)) for length in (height, width))
        return top, left, top + side, left + side

    def _around(self, sample: Any, instance: Instance, rng: np.random.Generator) -> tuple[int, int, int, int]:
        margin, shift = rng.uniform(*self.cut.margin), rng.uniform(-0.1, 0.1, 2)
        size = np.asarray(sample.image).shape[:2]
        return square_window(instance.box, size, margin, (float(shift[0]), float(shift[1])))


def _keypoints_in(points: np.ndarray, box: list[float]) -> np.ndarray:
    """Keypoints (24, 3) of one crop: x, y from 0 to 1 and class; rows of zeros where there are fewer."""
    table = np.zeros((KEYPOINTS, 3), np.float32)
    top, left, bottom, right = box
    places = (points[:, :2] - [left, top]) / [right - left, bottom - top]
    inside = ((places > 0) & (places < 1)).all(1)
    chosen = np.column_stack([places[inside], points[inside, 2]])[:KEYPOINTS]
    table[: len(chosen)] = chosen
    return table


def _patch_middles(box: tuple[int, int, int, int], count: int) -> np.ndarray:
    """Middles (count², 2) x, y of a crop's patches in the frame of its box, row by row."""
    top, left, bottom, right = box
    steps = (np.arange(count) + 0.5) / count
    y, x = np.meshgrid(top + steps * (bottom - top), left + steps * (right - left), indexing="ij")
    return np.stack([x.ravel(), y.ravel()], 1)


def random_box(
    size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random rectangle (top, left, bottom, right) of a share of the area, aspect from 3:4 to 4:3."""
    height, width = size
    area = height * width * rng.uniform(*scale)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    tall = int(np.clip(round(np.sqrt(area / aspect)), 4, height))
    wide = int(np.clip(round(np.sqrt(area * aspect)), 4, width))
    top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
    return top, left, top + tall, left + wide


def _crop(
    image: np.ndarray, box: tuple[int, int, int, int], side: int, rng: np.random.Generator
) -> np.ndarray:
    import cv2

    from vision3d.synthetic import augment

    top, left, bottom, right = box
    part = np.ascontiguousarray(image[top:bottom, left:right])
    method = cv2.INTER_AREA if min(part.shape[:2]) > side else cv2.INTER_CUBIC
    part = cv2.resize(part, (side, side), interpolation=method)
    return augment(part, rng, 0.7) if rng.random() < 0.9 else part


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross entropy ``(...)`` of the student's softmax against the teacher's probabilities ``(..., K)``."""
    return -(teacher * F.log_softmax(student / temperature, dim=-1)).sum(-1)


def match_loss(
    patches: Tensor,  # [B, N, C] to be found
    others: Tensor,  # [B, h * w, C] of the images in which
    wanted: Tensor,  # [B, N, h * w] shares of the patches there that are at their places, see cell_weights
    there: Tensor,  # [B, N] bool: which are there at all
    temperature: float,
) -> Tensor:
    """Cross entropy of the softmax over an image's patches, by their cosine with one that has its place among them."""
    most = int(there.sum(1).max())
    if not most:
        return (patches.sum() + others.sum()) * 0
    # of each image only the patches that are there, and as many more as make the numbers equal
    chosen = there.int().argsort(dim=1, descending=True)[:, :most, None]
    looked_for = F.normalize(patches.float(), dim=-1).gather(1, chosen.expand(-1, -1, patches.shape[-1]))
    scores = looked_for @ F.normalize(others.float(), dim=-1).transpose(1, 2)
    costs = distillation(scores, wanted.gather(1, chosen.expand(-1, -1, wanted.shape[-1])), temperature)
    counts = there.gather(1, chosen[..., 0]).to(costs)
    return (costs * counts).sum() / counts.sum()


def cell_weights(places: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bilinear weights ``(..., h * w)`` of a grid's cells at places ``(..., 2)``: x, y from 0 to 1."""
    shares = []
    for axis, count in ((1, grid[0]), (0, grid[1])):
        place = (places[..., axis] * count - 0.5).clamp(0, count - 1)
        shares.append((1 - (place[..., None] - torch.arange(count, device=places.device)).abs()).clamp_min(0))
    return (shares[0][..., :, None] * shares[1][..., None, :]).flatten(-2)


def partners(values: Tensor, group: int, step: int) -> Tensor:
    """The values ``(B, ...)`` of each image's partner, the ``step``-th after it in its group, round and round."""
    return values.unflatten(0, (-1, group)).roll(-step, 1).flatten(0, 1)


def common_keypoints(keypoints: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    """Where each keypoint is in the image's partner, ``(B, M, 2)``, and which are there, ``(B, M)`` bool.

    Args:
        keypoints, partner: ``(B, M, 3)`` x, y from 0 to 1 and class, 0 for none.
    """
    same = (keypoints[..., None, 2] == partner[:, None, :, 2]) & (keypoints[..., None, 2] > 0)
    return partner[..., :2].gather(1, same.int().argmax(-1, keepdim=True).expand(-1, -1, 2)), same.any(-1)


def nearest_places(places: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    """Shares ``(B, N, N)`` of the partner's patches in each patch's counterpart, and which have one, ``(B, N)`` bool.

    Args:
        places, partner: ``(B, N, 4)`` on the category's shape, the last 1 for patches that show the object.
    """
    distance = torch.cdist(places[..., :3], partner[..., :3])
    distance = distance.masked_fill(partner[:, None, :, 3] == 0, torch.inf)
    there = (places[..., 3] > 0) & (distance.amin(-1) < PLACE_REACH)
    shares = torch.softmax(-0.5 * (distance.clamp_max(1e3) / PLACE_WIDTH).square(), dim=-1)
    return shares, there


def found_in_group(
    features: Tensor,  # [B, N, C] of all patches of the images
    looked_for: Tensor,  # [B, M, C] of those that are to be found
    wanted: Callable[[int], tuple[Tensor, Tensor]],
    group: int,
    temperature: float,
) -> Tensor:
    """:func:`match_loss` of patches that are to be found in all others of their group.

    Args:
        features, looked_for: see above.
        wanted: for the ``step``-th partner the shares of its patches, (B, M, N), and which are there at all, (B, M).
        group: images of a category that come together.
        temperature: of the softmax over the places.
    """
    terms, counts = [], []
    for step in range(1, group):
        shares, there = wanted(step)
        terms.append(match_loss(looked_for, partners(features, group, step), shares, there, temperature))
        counts.append(there.sum())
    weights = torch.stack(counts).to(terms[0])
    return (torch.stack(terms) * weights).sum() / weights.sum().clamp_min(1)


def shape_loss(
    features: Tensor,  # [B, N, C] of patches
    places: Tensor,  # [B, N, 4], see CropBatches
    group: int,
    temperature: float,
) -> Tensor:
    """The patches of objects, to be found at their places on the other objects of their group."""
    return found_in_group(
        features,
        features,
        lambda step: nearest_places(places, partners(places, group, step)),
        group,
        temperature,
    )
