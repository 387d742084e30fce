"""One image against many: which of them show the same thing, and where its point lies in each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vision3d.pipelines.sd_dino import matching

if TYPE_CHECKING:
    from vision3d.pipelines.sd_dino.options import MatchOptions
    from vision3d.pipelines.sd_dino.pipeline import SDDino


@dataclass(frozen=True)
class Hit:
    """One image that was searched.

    Attributes:
        name: of the image.
        score: larger is more alike; comparable within one search only.
        point: x, y in its pixels where the query point lies, or None without one.
        confidence: of that place, 0 to 1, or of the whole.
    """

    name: str
    score: float
    point: tuple[float, float] | None
    confidence: float


def score_matches(confidence: np.ndarray, mutual: np.ndarray) -> float:
    """How well two images match as a whole: the sum of the confidences of their mutual matches.

    Not their mean: one stray match may be surer than hundreds of good ones.
    """
    return float((confidence * mutual).sum())


@torch.no_grad()
def retrieve(
    pipeline: SDDino,
    query: Any,
    images: Iterable[Any],
    point: tuple[float, float] | None = None,
    *,
    mask: np.ndarray | None = None,
    options: MatchOptions | None = None,
) -> list[Hit]:
    """Images in falling order of how much of the query they show.

    The score is the mean, over the query's cells (those in the mask, or the one at the point), of the similarity of
    their best match, as a cosine; a point's also tells where it lies.

    Args:
        pipeline: the method.
        query: image, or its features.
        images: what is searched; each is encoded once and let go.
        point: x, y in pixels of the query.
        mask: (H, W) object of the query.
        options: settings.
    """
    from vision3d.pipelines.sd_dino.options import MatchOptions

    options = options or MatchOptions()
    here = pipeline._features(query, options)
    hits = []
    for image in images:
        there = pipeline._features(image, options)
        pair = pipeline.describe(here, there, options)
        a, b = pair
        inside = (
            a.inside if mask is None else torch.from_numpy(a.grid.inside(np.asarray(mask, bool))).to(a.inside)
        )
        metric: Any = options.resolved_metric
        if point is not None:
            found = pipeline.match_described(here.photo, there.photo, pair, [point], options=options)
            x, y = map(float, found.points_b[0])
            length = matching.squared_length(b.cells, metric, a.halves)
            score = float(matching.as_cosine(torch.tensor(found.similarity).to(length), metric, length)[0])
            hits.append(Hit(there.photo.name, score, (x, y), float(found.confidence[0])))
            continue
        best = matching.nearest_cells(
            a.cells[inside], b.cells, b.shape, metric, halves=a.halves, second_mask=b.inside
        )
        hits.append(Hit(there.photo.name, float(best.cosine.mean()), None, float(best.share.mean())))
    return sorted(hits, key=lambda hit: (-hit.score, hit.name))
