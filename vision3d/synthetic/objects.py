"""Single objects of rendered scenes, cut out as photographs of them, and pairs of different ones of a category.

A scene shows many things; data sets of photographs show one each. ``instances`` finds what is large and open enough
in a sample to be the subject of a photograph, ``portrait`` cuts it out with some of its surroundings, and
``category_pairs`` lists pairs of different instances with the keypoints that both show.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vision3d.synthetic.render import VIEWS


@dataclass(frozen=True, eq=False)
class Instance:
    """An object in a sample.

    Attributes:
        seed: of the sample.
        object_id: in the sample.
        category: name of what it is.
        box: x0, y0, x1, y1 of its visible pixels (pixel edges).
        names: (N,) of its visible keypoints.
        points: (N, 2) x, y in pixels of the sample, centres at +0.5.
    """

    seed: int
    object_id: int
    category: str
    box: tuple[float, float, float, float]
    names: tuple[str, ...]
    points: np.ndarray

    @property
    def side(self) -> float:
        """Longer side of the box in pixels."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


def instances(
    sample: Any,  # a Sample or CachedSample
    *,
    min_share: float = 0.02,
    min_keypoints: int = 3,
) -> list[Instance]:
    """Objects of a sample with keypoints.

    Args:
        sample: with ``object_id``, ``keypoints`` and ``seed``.
        min_share: of the image that it covers.
        min_keypoints: that are visible.
    """
    found = []
    owner = np.asarray(sample.object_id)
    keypoints = sample.keypoints
    for object_id in np.unique(keypoints["object_id"]):
        rows = keypoints[(keypoints["object_id"] == object_id) & keypoints["visible"]]
        if len(rows) < min_keypoints:
            continue
        mask = owner == object_id
        if mask.mean() < min_share:
            continue
        y, x = np.nonzero(mask)
        box = float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)
        if max(box[2] - box[0], box[3] - box[1]) > min(owner.shape):
            continue  # no square of the image shows all of it
        points = np.stack([rows["x"], rows["y"]], 1).astype(np.float64)
        names = tuple(str(name) for name in rows["name"])
        found.append(Instance(int(sample.seed), int(object_id), str(rows["category"][0]), box, names, points))
    return found


def square_window(
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    margin: float,
    shift: tuple[float, float] = (0, 0),
) -> tuple[int, int, int, int]:
    """A square around a box inside an image: top, left, bottom, right; smaller than asked where the image ends.

    Args:
        box: x0, y0, x1, y1.
        size: (height, width) of the image.
        margin: side of the square relative to the box's longer side.
        shift: of its middle, x and y relative to its side.
    """
    side = max(box[2] - box[0], box[3] - box[1]) * margin
    side = int(max(8, min(round(side), *size)))
    x = (box[0] + box[2] - side) / 2 + shift[0] * side
    y = (box[1] + box[3] - side) / 2 + shift[1] * side
    left, top = (int(np.clip(round(v), 0, limit - side)) for v, limit in ((x, size[1]), (y, size[0])))
    return top, left, top + side, left + side


def portrait(
    sample: Any, instance: Instance, margin: float = 1.3
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float, float]]:
    """An object with some of its surroundings: image (S, S, 3) uint8, its keypoints (N, 2) and box there."""
    image = np.asarray(sample.image)
    top, left, bottom, right = square_window(instance.box, image.shape[:2], margin)
    x0, y0, x1, y1 = instance.box
    box = x0 - left, y0 - top, x1 - left, y1 - top
    return np.ascontiguousarray(image[top:bottom, left:right]), instance.points - [left, top], box


def category_pairs(
    found: Iterable[Instance],
    count: int,
    *,
    min_common: int = 3,
    seed: int = 0,
    per_category: int | None = None,
) -> list[tuple[Instance, Instance, list[str]]]:
    """Pairs of different instances of one category, with the names of the keypoints that both show.

    Instances of one scene are never paired: they may be views of the same thing. Categories take turns, so that
    frequent ones do not rule.

    Args:
        found: instances of many samples.
        count: pairs wanted; fewer if there are no more.
        min_common: keypoints that both must show.
        seed: of the order.
        per_category: at most so many pairs of one.
    """
    groups: dict[str, list[Instance]] = {}
    for instance in found:
        groups.setdefault(instance.category, []).append(instance)
    rng = np.random.default_rng(seed)
    queues = []
    for category in sorted(groups):
        members = groups[category]
        pairs = []
        for i, a in enumerate(members):
            for b in members[i + 1 :]:
                common = [name for name in a.names if name in b.names]
                if a.seed // VIEWS != b.seed // VIEWS and len(common) >= min_common:
                    pairs.append((a, b, common) if rng.random() < 0.5 else (b, a, common))
        order = rng.permutation(len(pairs))[: per_category if per_category is not None else len(pairs)]
        queues.append([pairs[i] for i in order])
    chosen: list[tuple[Instance, Instance, list[str]]] = []
    turn = 0
    while len(chosen) < count and any(len(queue) > turn for queue in queues):
        chosen += [queue[turn] for queue in queues if len(queue) > turn]
        turn += 1
    return chosen[:count]


def same_place(
    points: np.ndarray,  # [N, 2]
    source: tuple[float, float, float, float],
    target: tuple[float, float, float, float],
) -> np.ndarray:
    """The trivial prediction: points at the same place relative to the box, (N, 2)."""
    low, high = np.array(source[:2]), np.array(source[2:])
    start, end = np.array(target[:2]), np.array(target[2:])
    return (np.asarray(points) - low) / np.maximum(high - low, 1e-9) * (end - start) + start
