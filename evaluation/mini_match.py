"""What the mini weights of SD+DINO are worth: keypoints of held-out procedural objects, against a trivial prediction.

    python -m vision3d.evaluation.mini_match --weights DIR --out report.json

Objects of scenes that no training saw are cut out with some of their surroundings, and pairs of different instances
of one category are matched. The trivial prediction copies each keypoint to the same place relative to the object's
box. The measure is PCK@0.1 per point, relative to the longer side of the target's box.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vision3d.errors import InputError
from vision3d.evaluation.correspondence import PCK, PairErrors
from vision3d.evaluation.script import check_report, run_script
from vision3d.io.files import atomic_path, atomic_write_json, check_writable
from vision3d.progress import progress, say
from vision3d.synthetic.objects import category_pairs, instances, portrait, same_place

SEEDS = (900_400_000, 900_400_600)
"""Held-out scenes: apart from those by which trainings watch themselves and those of the depth test."""
GOAL_RATIO, GOAL_PCK = 3.0, 0.6
MODES = {"fused": "sd+dino", "sd": "sd", "dino": "dino"}


@dataclass(eq=False)
class Portrait:
    """An object cut out of its scene.

    Attributes:
        name: unique.
        category: of the object.
        image: (S, S, 3) uint8.
        points: name → (x, y) in its pixels, centres at +0.5.
        box: x0, y0, x1, y1.
    """

    name: str
    category: str
    image: np.ndarray
    points: dict[str, np.ndarray]
    box: tuple[float, float, float, float]


@dataclass(eq=False)
class PortraitPair:
    """Two portraits of different instances of one category, and the keypoints that both show."""

    source: Portrait
    target: Portrait
    names: list[str]

    def points(self, portrait: Portrait) -> np.ndarray:
        """(N, 2) of the common keypoints."""
        return np.array([portrait.points[name] for name in self.names])

    @property
    def limit(self) -> float:
        """Longer side of the target's box."""
        x0, y0, x1, y1 = self.target.box
        return max(x1 - x0, y1 - y0)


def held_out_pairs(
    count: int,
    *,
    seeds: tuple[int, int] = SEEDS,
    shards: Path | None = None,
    size: tuple[int, int] = (160, 160),
    margin: float = 1.3,
) -> list[PortraitPair]:
    """Pairs of held-out objects, the same for every call.

    Args:
        count: pairs wanted.
        seeds: first and one past the last scene, when they are rendered.
        shards: rendered shards to read instead.
        size: (height, width) of rendered images.
        margin: side of a portrait relative to the object.

    Raises:
        InputError: scenes that a training may have seen.
    """
    from vision3d.training.data import HELD_OUT_SEED, RenderedWorld, open_source

    source: Any = (
        RenderedWorld(seeds[0], seeds[1] - seeds[0], size)
        if shards is None
        else open_source(shards, held_out=True)
    )
    portraits: dict[tuple[int, int], Portrait] = {}
    found = []
    for index in progress(range(len(source)), description="held-out scenes"):
        sample = source[index]
        if sample.seed < HELD_OUT_SEED:
            raise InputError(
                f"scene {sample.seed} may have been trained on", f"use seeds from {HELD_OUT_SEED} on"
            )
        for instance in instances(sample):
            image, points, box = portrait(sample, instance, margin)
            name = f"{instance.seed}_{instance.object_id}"
            places = dict(zip(instance.names, points, strict=True))
            portraits[instance.seed, instance.object_id] = Portrait(
                name, instance.category, image, places, box
            )
            found.append(instance)
    return [
        PortraitPair(portraits[a.seed, a.object_id], portraits[b.seed, b.object_id], names)
        for a, b, names in category_pairs(found, count)
    ]


def score(pipeline: Any, pairs: Sequence[PortraitPair], features: str) -> PCK:
    """PCK of a pipeline over pairs, with one or both networks."""
    from vision3d.pipelines.sd_dino.options import MatchOptions
    from vision3d.pipelines.sd_dino.pairs import MEMORY, Kept

    options = MatchOptions(features=features)  # type: ignore[arg-type]
    images = {p.name: p.image for pair in pairs for p in (pair.source, pair.target)}
    encode = Kept(lambda name: pipeline.encode(images[name], options), MEMORY)
    results = []
    for pair in progress(pairs, description=f"pairs by {features}"):
        found = pipeline.match(
            encode(pair.source.name), encode(pair.target.name), pair.points(pair.source), options=options
        )
        results.append(_errors(pair, found.points_b))
    return PCK(results)


def score_same_place(pairs: Sequence[PortraitPair]) -> PCK:
    """PCK of copying each keypoint to the same place in the box."""
    return PCK([_errors(p, same_place(p.points(p.source), p.source.box, p.target.box)) for p in pairs])


def _errors(pair: PortraitPair, predicted: np.ndarray) -> PairErrors:
    errors = np.linalg.norm(predicted - pair.points(pair.target), axis=1)
    return PairErrors(pair.source.category, errors, pair.limit, float(max(pair.target.image.shape[:2])))


def compare(scores: dict[str, PCK]) -> dict[str, Any]:
    """All scores as JSON, and whether the goals are reached."""
    result: dict[str, Any] = {name: pck.table() for name, pck in scores.items()}
    main = {name: float(pck.per_point("bbox")[0]) for name, pck in scores.items()}
    result["pck_0.1_per_point_bbox"] = main
    if "fused" in main:
        trivial = main["same_place"]
        result["ratio_to_same_place"] = main["fused"] / trivial if trivial else None
        singles = [main[name] for name in ("sd", "dino") if name in main]
        result["reached"] = {
            "fused_at_least_each": all(main["fused"] >= value for value in singles),
            "three_times_same_place_or_0.6": main["fused"] >= GOAL_RATIO * trivial
            or main["fused"] >= GOAL_PCK,
        }
    return result


def main(
    out: Path,
    weights: str | None = None,
    sd: str | None = None,
    dino: str | None = None,
    pairs: int = 1200,
    seeds: tuple[int, int] = SEEDS,
    shards: Path | None = None,
    render_size: int = 160,
    sd_weight: float | None = None,
    dino_weight: float | None = None,
    device: str = "auto",
) -> int:
    """Measure the mini weights of SD+DINO on held-out objects, fused and each network alone.

    Args:
        out: report to write, a .json file; a picture of matches goes beside it.
        weights: folder of SD+DINO or "mini"; only the trivial prediction is scored without any.
        sd: Stable Diffusion prior instead of the weights' own.
        dino: DINO network instead of the weights' own.
        pairs: how many; at least 1000 for the record.
        seeds: first and one past the last held-out scene.
        shards: rendered held-out shards to read instead of rendering.
        render_size: side in pixels of rendered images.
        sd_weight: of Stable Diffusion's half.
        dino_weight: of DINO's half.
        device: where to compute.
    """
    check_report(out)
    check_writable(out.parent)
    chosen = held_out_pairs(pairs, seeds=seeds, shards=shards, size=(render_size, render_size))
    if not chosen:
        raise InputError("no pairs of objects in these scenes", "give more seeds")
    scores = {"same_place": score_same_place(chosen)}
    if weights is not None or sd is not None or dino is not None:
        from vision3d.pipelines.sd_dino import SDDino

        halves = {"sd_weight": sd_weight, "dino_weight": dino_weight}
        settings: dict[str, Any] = {name: value for name, value in halves.items() if value is not None}
        pipeline = SDDino.from_pretrained(weights, sd=sd, dino=dino, device=device, cache=False, **settings)
        for name, features in MODES.items():
            scores[name] = score(pipeline, chosen, features)
        picture = _picture(pipeline, chosen)
        with atomic_path(out.with_suffix(".png")) as path:
            picture.save(path)
    result = compare(scores)
    result["pairs"] = len(chosen)
    atomic_write_json(out, result)
    say(
        ", ".join(f"{n} {v:.3f}" for n, v in result["pck_0.1_per_point_bbox"].items())
        + f"; {len(chosen)} pairs"
    )
    return 0


def _picture(pipeline: Any, pairs: Sequence[PortraitPair], rows: int = 8) -> Any:
    """Keypoints of some pairs, predicted by the fused features."""
    from PIL import Image

    step = max(1, len(pairs) // rows)
    sheets = []
    for pair in pairs[::step][:rows]:
        found = pipeline.match(pair.source.image, pair.target.image, pair.points(pair.source))
        sheets.append(found.preview())
    sheet = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white")
    top = 0
    for part in sheets:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def run(arguments: Sequence[str] | None = None) -> int:
    """Command line, see :func:`run_script`."""
    return run_script(main, arguments)


if __name__ == "__main__":
    sys.exit(run())
