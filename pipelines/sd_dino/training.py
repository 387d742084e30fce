"""``vision3d train dino``: self-distillation of a vision transformer on the procedural world.

Caron et al.: "Emerging Properties in Self-Supervised Vision Transformers" (ICCV 2021). A student sees all crops of an
image, a teacher, the student's slow average, only the two large ones; the student predicts what the teacher makes of
another crop, over learned prototypes. Centring and a sharp teacher keep both from collapsing; where batches are too
small for it, the teacher's assignments are balanced over the batch instead and class tokens are spread apart, as in
DINOv2 (Oquab et al., 2023: Sinkhorn-Knopp and the KoLeo term).

Ours are two terms more, since few images and little time suffice for them and correspondence lives on patches: they
are distilled, too, each with the teacher's patch at the same place of the other crop (after iBOT and DenseCL), and each
has to find that place among all patches of the other crop. Images are cut around single objects, as the photographs
of a curated data set are.

The presets ``mini-keypoints``, ``mini-shapes`` and ``mini-objects`` are not self-supervised any more: there a named
keypoint of the procedural world, or every visible point of an object, also has to be found in a picture of another
object of its category. The record of a training says so.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from vision3d.backbone.dino import Dino, DinoConfig, Request, load_dino, normalise
from vision3d.errors import InputError, WeightsError
from vision3d.pipelines.sd_dino.options import SDDinoConfig
from vision3d.synthetic.canonical import keypoints_in_space, mean_shape, mirrored_name, places_on
from vision3d.synthetic.objects import (
    Instance,
    category_pairs,
    instances,
    portrait,
    same_place,
    square_window,
)
from vision3d.training.data import HELD_OUT_SEED, RenderedWorld, SampleSource, describe_run, open_source
from vision3d.training.deepen import silence
from vision3d.training.prior import preset
from vision3d.training.task import Batch, Batches, Task, TaskOptions


@dataclass(frozen=True)
class DinoRecipe:
    """Sizes and training.

    Args:
        width, depth, heads, patch: of the transformer.
        crop: side of the large crops in pixels.
        table: side in pixels of the images that the position table fits.
        local_crop: side of the small crops.
        locals: small crops per image.
        crop_scale, local_scale: share of an image's area that a crop covers, smallest and largest.
        batch: images per step.
        prototypes, hidden, bottleneck: of the heads.
        student_temperature, teacher_temperature: of the softmax over prototypes.
        teacher_warmup: steps over which the teacher's temperature rises from 0.04.
        momentum: of the teacher, at the start; it rises to 1 with a cosine over ``momentum_steps``.
        momentum_steps: length of that cosine.
        centring: ``mean`` takes a running mean off the teacher's outputs (DINO), ``sinkhorn`` balances its assignments
            over the batch (DINOv2).
        centre_momentum: of that running mean.
        koleo: weight of the term that keeps class tokens of different images apart; 0 is plain DINO.
        freeze_last: steps during which prototypes stay as they are.
        patch_weight: of the distillation of patches; 0 is plain DINO.
        match_weight: of finding a patch's place in the other large crop; 0 is plain DINO.
        cls_weight: of the distillation of class tokens.
        keypoint_weight: of finding a named keypoint of the world in another object of its category; 0 is
            self-supervised. Images then come in groups of one category.
        shape_weight: of finding every patch of an object in another one of its category, by where it is on the
            category's shape; likewise.
        views: large crops per image; 1 will do where only images of a group are compared.
        group: images of a category that come together.
        compared: others of its group that an image is compared with in a step, drawn anew each time; 0 for all.
        kept: share of a crop's patches that the student sees in three of four steps, those with keypoints and those of
            the object first; where only images of a group are compared.
        match_temperature: of the softmax over the places.
        objects: share of the images that are cut around an object with keypoints; others are random squares.
        margin: smallest and largest side of that cut relative to the object.
        flip: mirror half of the images, all crops of one alike, so that left and right stay apart.
        lr, warmup, weight_decay: of AdamW.
        sd_size, dino_size: canvases under which the weights are to be used with Stable Diffusion.
        world: (height, width) of scenes that are rendered when there is no cache.
    """

    width: int
    depth: int
    heads: int
    patch: int
    crop: int
    table: int
    local_crop: int
    locals: int
    batch: int
    prototypes: int
    hidden: int
    bottleneck: int
    lr: float
    momentum: float
    momentum_steps: int
    crop_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.08, 0.4)
    student_temperature: float = 0.1
    teacher_temperature: float = 0.07
    teacher_warmup: int = 1000
    centring: str = "mean"
    centre_momentum: float = 0.9
    koleo: float = 0.0
    freeze_last: int = 100
    patch_weight: float = 0.0
    match_weight: float = 0.0
    cls_weight: float = 1.0
    keypoint_weight: float = 0.0
    shape_weight: float = 0.0
    views: int = 2
    group: int = 4
    compared: int = 0
    kept: float = 1.0
    match_temperature: float = 0.07
    objects: float = 0.0
    margin: tuple[float, float] = (1.1, 1.8)
    flip: bool = True
    warmup: int = 1000
    weight_decay: float = 0.04
    sd_size: int = 960
    dino_size: int = 480
    world: tuple[int, int] = (240, 320)

    @property
    def in_groups(self) -> bool:
        """Whether images come in groups of one category."""
        return bool(self.keypoint_weight or self.shape_weight)


MINI = DinoRecipe(
    width=96,
    depth=5,
    heads=3,
    patch=8,
    crop=96,
    table=128,
    local_crop=48,
    locals=2,
    batch=24,
    prototypes=512,
    hidden=256,
    bottleneck=64,
    lr=1e-3,
    momentum=0.99,
    momentum_steps=4000,
    crop_scale=(0.45, 1.0),
    local_scale=(0.12, 0.4),
    teacher_temperature=0.05,
    teacher_warmup=300,
    centring="sinkhorn",
    koleo=0.1,
    freeze_last=50,
    patch_weight=1.0,
    match_weight=1.0,
    objects=0.8,
    flip=True,
    warmup=150,
    sd_size=256,
    dino_size=128,
    world=(120, 160),
)
KEYPOINTS_MINI = replace(
    MINI, locals=0, crop_scale=(0.6, 1.0), margin=(1.1, 1.6), patch_weight=0.0, keypoint_weight=4.0
)
SHAPES_MINI = replace(
    KEYPOINTS_MINI,
    cls_weight=0.0,
    koleo=0.0,
    match_weight=0.0,
    keypoint_weight=1.0,
    shape_weight=1.0,
    group=8,
)
# one crop each of twice as many objects: steps of the same cost that are less alike in themselves
OBJECTS_MINI = replace(
    SHAPES_MINI, views=1, batch=48, compared=3, crop=128, momentum=0.995, momentum_steps=100_000
)
PRESETS = {
    "mini": MINI,
    # go on from "mini", the last at the size of inference
    "mini-keypoints": KEYPOINTS_MINI,
    "mini-keypoints-fine": replace(KEYPOINTS_MINI, crop=128),
    # likewise; all points of objects, and nothing that needs the teacher
    "mini-shapes": SHAPES_MINI,
    "mini-shapes-fine": replace(SHAPES_MINI, crop=128),
    "mini-objects": OBJECTS_MINI,
    # three blocks more, which start as if they were not there
    "mini-objects-deep": replace(OBJECTS_MINI, depth=8),
    # four more, at the same time a step
    "mini-objects-deeper": replace(OBJECTS_MINI, depth=12, kept=0.56),
    # ViT-S/8 as published, except that the images are ours
    "full": DinoRecipe(
        width=384,
        depth=12,
        heads=6,
        patch=8,
        crop=224,
        table=224,
        local_crop=96,
        locals=8,
        batch=64,
        prototypes=65536,
        hidden=2048,
        bottleneck=256,
        lr=5e-4,
        momentum=0.996,
        momentum_steps=100_000,
        local_scale=(0.05, 0.4),
        crop_scale=(0.4, 1.0),
        teacher_temperature=0.07,
        teacher_warmup=10_000,
        freeze_last=1000,
        objects=0.8,
        warmup=10_000,
        world=(384, 512),
    ),
}


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


# Crops ------------------------------------------------------------------------------------------------------


@dataclass
class CropBatches:
    """Crops of images around single objects; batch ``k`` depends on the seed and ``k`` alone.

    A batch holds ``large`` (V B, 3, S, S) and ``small`` (L B, 3, s, s), RGB in [0, 1], crop by crop (all first large
    crops, then all second ones, ...), and ``boxes`` (V B, 4): top, left, bottom, right of the large crops in a frame
    that the crops of an image share. Where images come in groups there are ``keypoints`` (V B, 24, 3) of the large
    crops, x, y from 0 to 1 and class, and where the recipe asks for them ``places`` (V B, N, 4) of their patches on
    the category's shape, the last a 1 for patches that show the object.

    Args:
        source: samples with ``image``, ``object_id``, ``keypoints`` and ``seed``.
        recipe: sizes and shares.
        batch_size: images.
        seed: of order, places and augmentation.
    """

    source: SampleSource
    recipe: DinoRecipe
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
        return [found[name] for name in sorted(found) if len(found[name]) >= self.recipe.group]

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
        views = [(e, i) for i in range(self.recipe.views) for e in examples]
        batch: dict[str, Any] = {
            "large": _stacked([e[0][i] for e, i in views]),
            "boxes": torch.tensor([e[2][i] for e, i in views], dtype=torch.float32),
        }
        if self.recipe.keypoint_weight:
            batch["keypoints"] = torch.from_numpy(np.stack([_keypoints_in(e[3], e[2][i]) for e, i in views]))
        if self.recipe.shape_weight:
            batch["places"] = torch.from_numpy(np.stack([e[4][i] for e, i in views]))
        if self.recipe.locals:
            batch["small"] = _stacked([e[1][i] for i in range(self.recipe.locals) for e in examples])
        return batch

    def example(
        self, position: int
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[list[float]], np.ndarray, list[np.ndarray]]:
        """Large and small crops, the large ones' boxes, keypoints (x, y, class) and the large crops' places (N, 4)."""
        rng = np.random.default_rng((self.seed, 3, position))
        recipe = self.recipe
        if recipe.in_groups:
            category, number, instance = self._one_of_a_group(position)
            sample, object_id = self.source[number], instance.object_id
            top, left, bottom, right = self._around(sample, instance, rng)
        else:
            sample = self.source[int(rng.integers(len(self.source)))]
            top, left, bottom, right = self._subject(sample, rng)
        image = np.asarray(sample.image)[top:bottom, left:right]
        mirrored = recipe.flip and rng.random() < 0.5
        if mirrored:
            image = image[:, ::-1]
        points = np.zeros((0, 3), np.float32)
        if recipe.keypoint_weight:
            keypoints = sample.keypoints
            rows = keypoints[keypoints["visible"] & (keypoints["object_id"] == object_id)]
            classes = [keypoint_label(str(r["category"]), str(r["name"]), mirrored) for r in rows]
            points = np.stack([rows["x"] - left, rows["y"] - top, classes], 1).astype(np.float32)
            if mirrored:
                points[:, 0] = image.shape[1] - points[:, 0]
        large, small, boxes, places = [], [], [], []
        for _ in range(recipe.views):
            box = random_box(image.shape[:2], recipe.crop_scale, rng)
            large.append(_crop(image, box, recipe.crop, rng))
            boxes.append([float(v) for v in box])
            if recipe.shape_weight:
                pixels = _patch_middles(box, recipe.crop // recipe.patch)
                if mirrored:
                    pixels[:, 0] = image.shape[1] - pixels[:, 0]
                pixels += (left, top)
                on, shown = places_on(sample, object_id, self.shapes[category], pixels)
                on[:, 0] *= -1 if mirrored else 1  # in a mirrored image left is right
                places.append(np.column_stack([on, shown]).astype(np.float32))
        for _ in range(recipe.locals):
            box = random_box(image.shape[:2], recipe.local_scale, rng)
            small.append(_crop(image, box, recipe.local_crop, rng))
        return large, small, boxes, points, places

    def _one_of_a_group(self, position: int) -> tuple[int, int, Instance]:
        """Category, sample and object; each ``group`` of positions gets different objects of one category."""
        group = self.recipe.group
        rng = np.random.default_rng((self.seed, 5, position // group))
        # frequent categories come more often, but less so than they are there
        weights = np.sqrt([len(members) for members in self.categories])
        category = int(rng.choice(len(weights), p=weights / weights.sum()))
        members = self.categories[category]
        return category, *members[int(rng.choice(len(members), group, replace=False)[position % group])]

    def _subject(self, sample: Any, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """A square (top, left, bottom, right) of the sample, around one of its objects if it has one."""
        wanted = rng.random() < self.recipe.objects
        found = instances(sample, min_share=0.015, min_keypoints=1) if wanted else []
        if found:
            return self._around(sample, found[int(rng.integers(len(found)))], rng)
        height, width = np.asarray(sample.image).shape[:2]
        side = round(min(height, width) * rng.uniform(0.5, 1.0))
        top, left = (int(rng.integers(0, length - side + 1)) for length in (height, width))
        return top, left, top + side, left + side

    def _around(self, sample: Any, instance: Instance, rng: np.random.Generator) -> tuple[int, int, int, int]:
        margin, shift = rng.uniform(*self.recipe.margin), rng.uniform(-0.1, 0.1, 2)
        size = np.asarray(sample.image).shape[:2]
        return square_window(instance.box, size, margin, (float(shift[0]), float(shift[1])))


def _stacked(crops: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


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


# Networks ---------------------------------------------------------------------------------------------------


class PrototypeHead(nn.Module):
    """Three layers, a unit vector, and its cosine with unit prototypes (DINO, appendix C)."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.last_layer = nn.Parameter(torch.empty(prototypes, bottleneck))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.last_layer, std=0.02)

    def forward(self, x: Tensor, freeze: bool = False) -> Tensor:
        """``(..., width)`` to scores ``(..., prototypes)`` from -1 to 1."""
        prototypes = F.normalize(self.last_layer, dim=-1)
        return F.linear(F.normalize(self.mlp(x), dim=-1), prototypes.detach() if freeze else prototypes)


def initialise(network: Dino) -> None:
    """DINO's initialisation: truncated normal of 0.02, zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    for parameter in (network.cls_token, network.pos_embed):
        nn.init.trunc_normal_(parameter, std=0.02)


def balanced(logits: Tensor, iterations: int = 3) -> Tensor:
    """Probabilities ``(N, K)`` near the softmax of logits under which all K are used alike (Sinkhorn-Knopp)."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()

    def over_samples(values: Tensor) -> Tensor:
        total = values.sum(0)
        if together:
            torch.distributed.all_reduce(total)
        return total

    # one shift for all: rows are normalised below, and columns must not be shifted apart
    highest = logits.max()
    if together:
        torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX)
    weights = (logits - highest).exp()
    for _ in range(iterations):
        weights = weights / over_samples(weights).clamp_min(1e-30)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-30)
    return weights


def koleo_loss(vectors: Tensor) -> Tensor:
    """Minus the mean logarithm of each unit vector's distance to its nearest other one (KoLeo); ``(N, C)``."""
    unit = F.normalize(vectors.float(), dim=-1)
    with torch.no_grad():
        nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
    return -(F.pairwise_distance(unit, unit[nearest]) + 1e-8).log().mean()


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross entropy ``(...)`` of the student's softmax against the teacher's probabilities ``(..., K)``."""
    return -(teacher * F.log_softmax(student / temperature, dim=-1)).sum(-1)


def places_in(here: Tensor, there: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where the patches of one crop are in another: ``(B, h * w, 2)`` x, y from 0 to 1, and which are inside.

    Args:
        here, there: ``(B, 4)`` boxes of the two crops: top, left, bottom, right in one frame.
        grid: (h, w) patches of the crop ``here``.
    """
    middles = [(torch.arange(count, device=here.device) + 0.5) / count for count in grid]
    y = here[:, 0:1] + middles[0] * (here[:, 2:3] - here[:, 0:1])
    x = here[:, 1:2] + middles[1] * (here[:, 3:4] - here[:, 1:2])
    v = (y - there[:, 0:1]) / (there[:, 2:3] - there[:, 0:1])
    u = (x - there[:, 1:2]) / (there[:, 3:4] - there[:, 1:2])
    places = torch.stack(
        [u[:, None, :].expand(-1, grid[0], -1), v[:, :, None].expand(-1, -1, grid[1])], dim=-1
    ).flatten(1, 2)
    return places, ((places > 0) & (places < 1)).all(-1)


def match_loss(
    patches: Tensor,  # [B, N, C] to be found
    others: Tensor,  # [B, h * w, C] of the images in which
    wanted: Tensor,  # [B, N, h * w] shares of the patches there that are at their places, see cell_weights
    there: Tensor,  # [B, N] bool: which are there at all
    temperature: float,
) -> Tensor:
    """Cross entropy of the softmax over an image's patches, by their cosine with one that has its place among them.

    Mean over the patches that are there; 0 if there are none.
    """
    looked_for = F.normalize(patches.float(), dim=-1) / temperature
    cells = F.normalize(others.float(), dim=-1)
    # as the shares sum to 1; less to hold than the logarithm of the softmax
    costs = (looked_for @ cells.transpose(1, 2)).logsumexp(-1) - (looked_for * (wanted @ cells)).sum(-1)
    return torch.where(there, costs, 0).sum() / there.sum().clamp_min(1)


def foremost(chosen: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Of values ``(B, N, C)`` those that are chosen, ``(B, N)``: ``(B, M, C)``, M the most of an image; then others."""
    order = chosen.int().argsort(dim=1, descending=True)[:, : int(chosen.sum(1).max()), None]
    return tuple(value.take_along_dim(order, 1) for value in values)


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


def keypoint_cells(keypoints: Tensor, grid: tuple[int, int]) -> Tensor:
    """Indices ``(B, M)`` of the patches that hold keypoints ``(B, M, 3)``: x, y from 0 to 1 and class."""
    rows, columns = grid
    row = (keypoints[..., 1] * rows).long().clamp(0, rows - 1)
    return row * columns + (keypoints[..., 0] * columns).long().clamp(0, columns - 1)


def common_keypoints(keypoints: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    """Where each keypoint is in the image's partner, ``(B, M, 2)``, and which are there, ``(B, M)`` bool.

    Args:
        keypoints, partner: ``(B, M, 3)`` x, y from 0 to 1 and class, 0 for none.
    """
    same = (keypoints[..., None, 2] == partner[:, None, :, 2]) & (keypoints[..., None, 2] > 0)
    return partner[..., :2].take_along_dim(same.int().argmax(-1, keepdim=True), 1), same.any(-1)


def nearest_places(places: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    """Shares ``(B, M, N)`` of the partner's patches in each patch's counterpart, and which have one, ``(B, M)`` bool.

    Args:
        places, partner: ``(B, M, 4)`` and ``(B, N, 4)`` on the category's shape, the last 1 for patches that show the
            object.
    """
    distance = torch.cdist(places[..., :3], partner[..., :3])
    distance = distance.masked_fill(partner[:, None, :, 3] == 0, torch.inf)
    there = (places[..., 3] > 0) & (distance.amin(-1) < PLACE_REACH)
    shares = torch.softmax(-0.5 * (distance.clamp_max(1e3) / PLACE_WIDTH).square(), dim=-1)
    return shares, there


def _exported(folder: Path) -> Dino:
    return load_dino(folder / "dino" if (folder / "dino").is_dir() else folder)


class DinoTask(Task):
    """Student and teacher.

    Args:
        recipe: sizes and training.
        source: images with object ids and keypoints.
        options: what the person set; ``init`` may hold an earlier export (``dino/``) to go on from, all of whose
            blocks are kept; the recipe may ask for more.
    """

    name: ClassVar[str] = "dino"

    def __init__(self, recipe: DinoRecipe, source: SampleSource, options: TaskOptions) -> None:
        self._started = None if options.init is None else _exported(options.init)
        if self._started is not None and self._started.config.depth > recipe.depth:
            recipe = replace(recipe, depth=self._started.config.depth)
        self._recipe, self.source, self.options = recipe, source, options
        self.batch_size = options.batch_size or recipe.batch
        if recipe.crop % recipe.patch or recipe.local_crop % recipe.patch or recipe.table % recipe.patch:
            raise InputError(
                f"crops of {recipe.crop} with patches of {recipe.patch}", "use multiples of the patch"
            )
        if recipe.in_groups and self.batch_size % recipe.group:
            raise InputError(f"{self.batch_size} images a step", f"use a multiple of {recipe.group}")
        within = recipe.cls_weight or recipe.koleo or recipe.patch_weight or recipe.match_weight
        if within and recipe.views != 2:
            raise InputError(f"{recipe.views} large crops", "crops of an image are compared in twos: use 2")
        if within and recipe.kept < 1:
            raise InputError(f"{recipe.kept} of the patches", "crops of an image are compared whole: keep 1")
        self._held: list[Any] | None = None

    @classmethod
    @override
    def from_options(cls, options: TaskOptions) -> DinoTask:
        recipe = preset(PRESETS, options.preset, cls.name)
        return cls(recipe, open_source(options.data, recipe.world), options)

    @override
    def recipe(self) -> dict[str, Any]:
        # what is exported is the teacher, itself an average
        recipe = self._recipe
        return {
            "lr": recipe.lr, "warmup": recipe.warmup, "ema": 0.0, "weight_decay": recipe.weight_decay, "grad_clip": 3.0,
        }  # fmt: skip

    @property
    def network_config(self) -> DinoConfig:
        """Sizes of the transformer; v1's layout, which has no layer scale."""
        recipe = self._recipe
        return DinoConfig(
            recipe.width, recipe.depth, recipe.heads, recipe.patch, recipe.table // recipe.patch, 4 * recipe.width,
            layer_scale=False, mask_token=False,
        )  # fmt: skip

    @override
    def build(self) -> nn.Module:
        recipe = self._recipe
        parts: dict[str, nn.Module] = {}
        for who in ("student", "teacher"):
            network = Dino(self.network_config)
            initialise(network)
            parts[who] = network
            for head in ("cls_head", "patch_head"):
                parts[f"{who}_{head}"] = PrototypeHead(
                    recipe.width, recipe.hidden, recipe.bottleneck, recipe.prototypes
                )
        if self._started is not None:
            self._continue_from(parts["student"], self._started)
        self.model = nn.ModuleDict(parts)
        for name in ("", "_cls_head", "_patch_head"):
            parts[f"teacher{name}"].load_state_dict(parts[f"student{name}"].state_dict())
            parts[f"teacher{name}"].requires_grad_(False)
        for name, shape in (("cls", recipe.prototypes), ("patch", recipe.prototypes)):
            self.model.register_buffer(f"{name}_centre", torch.zeros(shape))
        # the last step after which the teacher followed; saved, so that a resumed run follows exactly once, too
        self.model.register_buffer("followed", torch.zeros((), dtype=torch.int64))
        return self.model

    def _continue_from(self, student: nn.Module, loaded: Dino) -> None:
        wanted = self.network_config
        if replace(loaded.config, depth=wanted.depth) != wanted:
            raise WeightsError(
                f"{self.options.init}: a network of other sizes",
                f"give the export of preset {self.options.preset}",
            )
        own = {name: value.float() for name, value in loaded.state_dict().items()}
        student.load_state_dict({**student.state_dict(), **own})
        # blocks that it does not have come last, and add nothing at first
        for block in student.blocks[loaded.config.depth :]:  # type: ignore[index]
            silence(block.attn.proj, block.mlp.fc2)

    @override
    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        # position table and class token have more than one axis and are not decayed either
        free = ("pos_embed", "cls_token")
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        return [
            {"params": [p for n, p in named if p.ndim > 1 and not n.endswith(free)]},
            {"params": [p for n, p in named if p.ndim <= 1 or n.endswith(free)], "weight_decay": 0.0},
        ]

    @override
    def batches(self) -> Batches:
        return CropBatches(self.source, self._recipe, self.batch_size, self.options.seed)

    def _part(self, name: str) -> Any:
        return self.model[name]  # type: ignore[index]

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Moves the teacher towards the student, once for every optimiser step that was done."""
        if step <= int(self.model.followed):  # type: ignore[arg-type]
            return
        progress = min(1.0, step / self._recipe.momentum_steps)
        momentum = 1 - (1 - self._recipe.momentum) * (np.cos(np.pi * progress) + 1) / 2
        for name in ("", "_cls_head", "_patch_head"):
            mine = list(self._part(f"teacher{name}").parameters())
            other = [p.detach() for p in self._part(f"student{name}").parameters()]
            torch._foreach_lerp_(mine, other, 1 - float(momentum))
        self.model.followed.fill_(step)  # type: ignore[operator, union-attr]

    def _teach(self, scores: Tensor, centre: str, step: int) -> Tensor:
        """The teacher's probabilities, centred and sharp; the centre takes them in."""
        recipe = self._recipe
        share = min(1.0, step / max(1, recipe.teacher_warmup))
        temperature = 0.04 + (recipe.teacher_temperature - 0.04) * share
        if recipe.centring == "sinkhorn":
            return balanced(scores.float().flatten(0, -2) / temperature).view_as(scores)
        middle: Tensor = getattr(self.model, f"{centre}_centre")
        probabilities = ((scores.float() - middle) / temperature).softmax(-1)
        mean = scores.float().flatten(0, -2).mean(0)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(mean)
            mean /= torch.distributed.get_world_size()
        middle.lerp_(mean, 1 - recipe.centre_momentum)
        return probabilities

    @override
    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        recipe = self._recipe
        self.follow(step)
        large, boxes = normalise(batch["large"]), batch["boxes"]
        frozen = step < recipe.freeze_last
        count = len(large) // 2
        request = [Request(norm=True)]
        keep = None
        if recipe.kept < 1 and step % 4:
            keep = self._drawn(batch, (recipe.crop // recipe.patch,) * 2, generator)
        seen = self._part("student")(large, request, keep=keep)[0]
        taught = None
        if recipe.cls_weight or recipe.patch_weight:
            with torch.no_grad():
                taught = self._part("teacher")(large, request)[0]
        loss: Tensor = seen.patches.new_zeros(())
        metrics: dict[str, Tensor] = {}
        if recipe.cls_weight:
            told, metrics = self._cls_loss(batch, seen, taught, step, frozen)
            loss = loss + recipe.cls_weight * told
        if recipe.koleo and count > 1:
            spread = (koleo_loss(seen.cls[:count]) + koleo_loss(seen.cls[count:])) / 2
            loss = loss + recipe.koleo * spread
            metrics["koleo"] = spread.detach()
        if recipe.patch_weight or recipe.match_weight:
            # where each patch of a large crop is in the other one
            places, inside = places_in(boxes, boxes.roll(count, 0), seen.grid)
            shares = cell_weights(places, seen.grid)
            if recipe.patch_weight:
                dense = self._patch_loss(seen, taught, shares, inside, step, frozen)
                loss = loss + recipe.patch_weight * dense
                metrics["patch"] = dense.detach()
            if recipe.match_weight:
                swapped = seen.patches.roll(count, 0)
                found = match_loss(seen.patches, swapped, shares, inside, recipe.match_temperature)
                loss = loss + recipe.match_weight * found
                metrics["match"] = found.detach()
        if recipe.keypoint_weight:
            named = self._keypoint_loss(seen, batch["keypoints"], generator, keep)
            loss = loss + recipe.keypoint_weight * named
            metrics["keypoints"] = named.detach()
        if recipe.shape_weight:
            places = batch["places"] if keep is None else batch["places"].take_along_dim(keep[..., None], 1)
            placed = self._shape_loss(seen, places, generator)
            loss = loss + recipe.shape_weight * placed
            metrics["shape"] = placed.detach()
        return loss, metrics

    def _cls_loss(
        self, batch: Batch, seen: Any, taught: Any, step: int, frozen: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Each crop's class token against what the teacher makes of the other large crop, and metrics."""
        with torch.no_grad():
            targets = self._teach(self._part("teacher_cls_head")(taught.cls), "cls", step)
        scores = [self._part("student_cls_head")(seen.cls, frozen)]
        if "small" in batch:
            small = self._part("student")(normalise(batch["small"]), [Request(norm=True)])[0]
            scores.append(self._part("student_cls_head")(small.cls, frozen))
        count = len(seen.cls) // 2
        crops = torch.cat(scores).unflatten(0, (-1, count))
        teacher = targets.unflatten(0, (2, count))
        terms = [
            distillation(crops[j], teacher[i], self._recipe.student_temperature).mean()
            for i in range(2)
            for j in range(len(crops))
            if i != j
        ]
        loss = torch.stack(terms).mean()
        entropy = -(targets.mean(0) * targets.mean(0).clamp_min(1e-9).log()).sum()
        return loss, {"cls": loss.detach(), "prototypes": entropy.exp()}

    def _drawn(self, batch: Batch, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Indices (B, M) of the patches that the student is to see; those with keypoints are all among them."""
        count, cells = len(batch["large"]), grid[0] * grid[1]
        order = torch.rand(count, cells, generator=generator, device=generator.device)
        order = order.to(batch["large"].device)
        if "places" in batch:
            order = order + batch["places"][..., 3]
        if "keypoints" in batch:
            named = batch["keypoints"][..., 2] > 0
            order = order.scatter_add(1, keypoint_cells(batch["keypoints"], grid), 2.0 * named)
        fewest = min(KEYPOINTS, cells)
        return order.topk(max(fewest, round(self._recipe.kept * cells)), dim=1).indices

    def _keypoint_loss(
        self, seen: Any, keypoints: Tensor, generator: torch.Generator, keep: Tensor | None = None
    ) -> Tensor:
        """The patches that hold a keypoint, to be found in the images of other objects of the category."""
        cells = keypoint_cells(keypoints, seen.grid)
        if keep is not None:
            cells = (keep[:, None] == cells[..., None]).int().argmax(-1)
        patches = seen.patches.take_along_dim(cells[..., None], 1)

        def wanted(step: int) -> tuple[Tensor, Tensor]:
            group = self._recipe.group
            places, there = common_keypoints(keypoints, partners(keypoints, group, step))
            shares = cell_weights(places, seen.grid)
            if keep is not None:
                shares = shares.take_along_dim(partners(keep, group, step)[:, None], 2)
                shares = shares / shares.sum(-1, keepdim=True).clamp_min(1e-6)
            return shares, there

        return self._found_in_group(seen, patches, wanted, generator)

    def _shape_loss(self, seen: Any, places: Tensor, generator: torch.Generator) -> Tensor:
        """The patches of objects, to be found at their places on other objects of the category."""
        group = self._recipe.group
        shown, patches = foremost(places[..., 3] > 0, places, seen.patches)
        return self._found_in_group(
            seen, patches, lambda step: nearest_places(shown, partners(places, group, step)), generator
        )

    def _found_in_group(
        self,
        seen: Any,
        patches: Tensor,
        wanted: Callable[[int], tuple[Tensor, Tensor]],
        generator: torch.Generator,
    ) -> Tensor:
        """Patches (B, N, C), to be found in the others of their group.

        Args:
            seen: tokens of the crops.
            patches: that are looked for.
            wanted: shares of the patches of the ``step``-th partner that they are at, and which are there at all.
            generator: draws the partners.
        """
        group, temperature = self._recipe.group, self._recipe.match_temperature
        drawn = torch.randperm(group - 1, generator=generator, device=generator.device) + 1
        terms, counts = [], []
        for step in drawn[: self._recipe.compared or None].tolist():
            shares, there = wanted(step)
            others = partners(seen.patches, group, step)
            terms.append(match_loss(patches, others, shares, there, temperature))
            counts.append(there.sum())
        weights = torch.stack(counts).to(terms[0])
        return (torch.stack(terms) * weights).sum() / weights.sum().clamp_min(1)

    def _patch_loss(
        self, seen: Any, taught: Any, shares: Tensor, inside: Tensor, step: int, frozen: bool
    ) -> Tensor:
        """Each patch of a large crop against the teacher's at its place in the other large crop.

        Args:
            seen, taught: tokens of the large crops, by student and teacher.
            shares, inside: of the other crop's patches at each patch's place, and whether it is there.
            step, frozen: of the training, and whether prototypes stay.
        """
        recipe = self._recipe
        with torch.no_grad():
            targets = self._teach(self._part("teacher_patch_head")(taught.patches), "patch", step)
            wanted = shares @ targets.roll(len(targets) // 2, 0)
        # only patches that the other crop shows cost anything
        scores = self._part("student_patch_head")(seen.patches[inside], frozen)
        if not len(scores):
            return seen.patches.sum() * 0
        return distillation(scores, wanted[inside], recipe.student_temperature).mean()

    # Looking at it ------------------------------------------------------------------------------------------

    def _held_out(self) -> list[Any]:
        """Pairs of portraits of held-out instances, with keypoints and boxes, at the size of inference."""
        if self._held is None:
            import cv2

            world = RenderedWorld(HELD_OUT_SEED, 90, self._recipe.world)
            samples = {sample.seed: sample for sample in (world[i] for i in range(len(world)))}
            found = [i for sample in samples.values() for i in instances(sample)]
            side = self._recipe.dino_size
            pairs = []
            for a, b, names in category_pairs(found, 200):
                views = []
                for instance in (a, b):
                    image, points, box = portrait(samples[instance.seed], instance)
                    scale = side / len(image)
                    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
                    rows = [instance.names.index(name) for name in names]
                    views.append((image, points[rows] * scale, tuple(v * scale for v in box)))
                pairs.append(views)
            self._held = pairs
        return self._held

    @override
    def evaluate(self, step: int) -> dict[str, float]:
        """PCK@0.1 per point of the box on held-out pairs, and that of the same place in the box."""
        pairs = self._held_out()
        if not pairs:
            return {}
        hits: list[np.ndarray] = []
        trivial: list[np.ndarray] = []
        patch = self._recipe.patch
        for views in pairs:
            images = torch.from_numpy(np.stack([v[0] for v in views])).permute(0, 3, 1, 2).float() / 255
            tokens = self._part("teacher").features(images.to(self.device), norm=True)
            cells = F.normalize(tokens.patches.float(), dim=-1)
            (_, here, source), (_, there, target) = views
            columns, rows = np.clip(here // patch, 0, tokens.grid[0] - 1).astype(int).T
            index = torch.from_numpy(rows * tokens.grid[1] + columns).to(cells.device)
            best = (cells[0, index] @ cells[1].T).argmax(1).cpu().numpy()
            places = (np.stack([best % tokens.grid[1], best // tokens.grid[1]], 1) + 0.5) * patch
            limit = 0.1 * max(target[2] - target[0], target[3] - target[1])
            hits.append(np.linalg.norm(places - there, axis=1) < limit)
            trivial.append(np.linalg.norm(same_place(here, source, target) - there, axis=1) < limit)
        return {
            "pck": float(np.concatenate(hits).mean()),
            "same_place_pck": float(np.concatenate(trivial).mean()),
        }

    @override
    def images(self, step: int) -> dict[str, Tensor]:
        """Portraits, and their patches' first three principal directions as colours."""
        pairs = self._held_out()[:8]
        if not pairs:
            return {}
        views = np.stack([view[0] for pair in pairs for view in pair])
        images = torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255
        tokens = self._part("teacher").features(images.to(self.device), norm=True)
        cells = tokens.patches.float().cpu().flatten(0, 1)  # where no autocast takes bits from the directions
        cells = cells - cells.mean(0)
        _, axes = torch.linalg.eigh(cells.T @ cells)
        colours = (cells @ axes[:, -3:]).unflatten(0, (len(images), *tokens.grid)).permute(0, 3, 1, 2)
        low, high = colours.amin((0, 2, 3), keepdim=True), colours.amax((0, 2, 3), keepdim=True)
        shown = F.interpolate((colours - low) / (high - low), size=images.shape[-2:], mode="nearest")
        return {"patches": torch.cat([images, shown.cpu()])}

    @override
    def export(self, folder: Path) -> None:
        from vision3d.pipelines.sd_dino.pipeline import save_dino

        network = Dino(self.network_config)
        network.load_state_dict(self._part("teacher").state_dict())
        for name, value in network.state_dict().items():
            if not bool(torch.isfinite(value.half()).all()):
                raise WeightsError(f"{name} is not finite in half precision", "the training has diverged")
        save_dino(network.half(), folder / "dino")
        recipe = self._recipe
        config = SDDinoConfig(
            sd_size=recipe.sd_size,
            tile=None if recipe.sd_size < 512 else 512,
            dims={"s5": 64, "s4": 64, "s3": 64} if recipe.sd_size < 512 else SDDinoConfig().dims,
            dino_size=recipe.dino_size,
            dino_layer=recipe.depth - 1,
            dino_facet="token",
            dino_norm=True,  # the heads saw normed tokens
        )
        # beside the prior where the embedded weights are; other places are given when the weights are loaded
        config.save(folder, sd="../primedepth", dino="dino")

    @override
    def describe(self) -> dict[str, Any]:
        from vision3d.backbone.loading import fingerprint

        init = self.options.init
        started = None if init is None else fingerprint(init)
        return describe_run(self.options.preset, self._recipe, self.source, started)

    @override
    def frozen(self) -> Iterable[nn.Module]:
        return ()
