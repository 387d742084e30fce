"""``vision3d evaluate``: a method's accuracy on a data set, by the protocol of the published tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from vision3d.cli import Report
from vision3d.evaluation.datasets import DatasetName


def evaluate(
    task: Annotated[Literal["depth"], tyro.conf.Positional],
    dataset: DatasetName,
    out: Path,
    root: Path | None = None,
    weights: str | None = None,
    split: Path | None = None,
    limit: int | None = None,
    size: int | None = None,
    batch_size: int = 1,
    published_fit: bool = False,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> Report:
    """Measure depth on a data set: aligned by least squares, scored per image, averaged.

    Interrupted runs go on where they stopped. The output folder gets report.json, table.md, per_image.csv and
    previews.png with the best and the worst images.

    Args:
        task: what to evaluate.
        dataset: nyu, kitti, eth3d, scannet and diode in their official layouts; samples for a folder of a
            few real images; procedural for held-out images of the synthetic world.
        out: output folder.
        root: folder of the data set as distributed; for procedural, of rendered shards (rendered if not
            given).
        weights: folder, file or name of the weights; the embedded ones if not given.
        split: file with the list of test images, if it does not lie in the data set's folder.
        limit: only the first so many images.
        size: reduce images to this longest side in pixels first; maps are scored at full size in any case.
        batch_size: images per pass; with more than 1, images of one size run together.
        published_fit: where the fit is made at limited resolution (eth3d), shrink the width only, as the
            published scripts do.
        device: where to compute.
    """
    from vision3d.evaluation.datasets import open_dataset
    from vision3d.evaluation.depth_benchmark import Protocol, evaluate_depth
    from vision3d.io.files import check_writable
    from vision3d.pipelines.primedepth import PrimeDepth

    del task  # there is one so far
    check_writable(out)
    reader = open_dataset(dataset, root, split=split)
    pipeline = PrimeDepth.from_pretrained(weights, device=device)
    return evaluate_depth(
        lambda images: pipeline(images, batch_size=batch_size),  # type: ignore[arg-type, return-value]
        reader,
        out,
        protocol=Protocol(size=size, width_only_resize=published_fit),
        limit=limit,
        batch_size=batch_size,
    )
