"""``vision3d evaluate``: a method's accuracy on a data set, by the protocol of the published tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import tyro

from vision3d.cli import Report
from vision3d.errors import InputError
from vision3d.evaluation.datasets import DatasetName
from vision3d.pipelines.sd_dino.options import Features

MatchDataset = Literal["spair", "pfpascal", "tss"]
NormalDataset = Literal["pictures"]


def evaluate(
    task: Annotated[Literal["depth", "normals", "match"], tyro.conf.Positional],
    dataset: DatasetName | NormalDataset | MatchDataset,
    out: Path,
    root: Path | None = None,
    weights: str | None = None,
    split: Path | None = None,
    limit: int | None = None,
    size: int | None = None,
    batch_size: int = 1,
    published_fit: bool = False,
    predict: bool = True,
    seeds: int = 1,
    turbo: bool = False,
    frame: str = "stablenormal",
    sample: int = 0,
    category_prompt: bool = False,
    published: bool = False,
    unet: str | None = None,
    dino: str | None = None,
    captioner: str | None = None,
    clip: str | None = None,
    conditioning: Literal["auto", "empty", "implicit"] = "auto",
    features: Features = "sd+dino",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> Report:
    """Measure a method on a data set by the protocol of the published tables.

    Depth is aligned by least squares, scored per image, averaged; interrupted runs go on where they stopped. The
    output folder gets report.json, table.md, per_image.csv and previews.png with the best and the worst images.
    Correspondence is scored by PCK in all four published conventions (per point or per image, relative to the box or
    the image), or by the errors of dense flow; the output folder gets report.json and per_pair.csv.
    Normals are scored by both protocols in use, pooled pixels and averages over images, from pictures in the layout of
    the published script: NAME_gt.png, NAME_ref.png (the photograph) and NAME_LABEL.png of every prediction that is to
    be compared; the output folder gets report.json, table.md, per_image.csv and our predictions.

    Args:
        task: what to evaluate.
        dataset: depth: nyu, kitti, eth3d, scannet and diode in their official layouts; samples for a folder of a
            few real images; procedural for held-out images of the synthetic world. match: spair, pfpascal and tss in
            their official layouts. normals: pictures.
        out: output folder.
        root: folder of the data set as distributed; for procedural, of rendered shards (rendered if not
            given).
        weights: folder, file or name of the weights; if not given, the official ones if they were pulled, else the
            embedded ones.
        split: file with the list of test images, if it does not lie in the data set's folder.
        limit: only the first so many images.
        size: reduce images to this longest side in pixels first; maps are scored at full size in any case.
        batch_size: images per pass; with more than 1, images of one size run together.
        published_fit: where the fit is made at limited resolution (eth3d), shrink the width only, as the
            published scripts do.
        predict: normals: predict the photographs; otherwise only the pictures that are there are scored.
        seeds: normals: so many predictions of each photograph, and their variance.
        turbo: normals: one step.
        frame: normals: axes of the pictures.
        sample: match: so many pairs per category, drawn as the published script does by default (20); 0 for all.
        category_prompt: match: caption images "a photo of CATEGORY".
        published: match: the published rules for cells, borders and weights, slips included.
        unet: match: UNet instead of the weights' own, such as CleanDIFT's for --features clean.
        dino: match: DINO network instead of the weights' own.
        captioner: match: ODISE's checkpoint (CC BY-NC-SA 4.0), for implicit captions as in the published tables.
        clip: match: folder of CLIP ViT-L/14 at 336, for implicit captions.
        conditioning: match: of Stable Diffusion by the empty prompt or by implicit captions; auto takes these where
            --captioner and --clip are given.
        features: match: of both networks or of one, or Stable Diffusion read as DIFT or CleanDIFT do.
        device: where to compute.
    """
    if task == "match":
        return _evaluate_match(
            dataset,
            out,
            root,
            weights,
            split,
            limit,
            sample,
            category_prompt,
            published,
            unet,
            dino,
            captioner,
            clip,
            conditioning,
            features,
            device,
        )
    if task == "normals":
        return _evaluate_normals(dataset, out, root, weights, limit, predict, seeds, turbo, frame, device)
    if dataset in (*get_args(MatchDataset), *get_args(NormalDataset)):
        raise InputError(f"depth on {dataset}", f"choose one of {', '.join(get_args(DatasetName))}")
    from vision3d.evaluation.datasets import open_dataset
    from vision3d.evaluation.depth_benchmark import Protocol, evaluate_depth
    from vision3d.io.files import check_writable
    from vision3d.pipelines.primedepth import PrimeDepth

    check_writable(out)
    reader = open_dataset(cast(DatasetName, dataset), root, split=split)
    pipeline = PrimeDepth.from_pretrained(weights, device=device)
    return evaluate_depth(
        lambda images: pipeline(images, batch_size=batch_size),  # type: ignore[arg-type, return-value]
        reader,
        out,
        protocol=Protocol(size=size, width_only_resize=published_fit),
        limit=limit,
        batch_size=batch_size,
    )


def _evaluate_normals(
    dataset: str,
    out: Path,
    root: Path | None,
    weights: str | None,
    limit: int | None,
    predict: bool,
    seeds: int,
    turbo: bool,
    frame: str,
    device: str,
) -> Report:
    import numpy as np

    from vision3d.evaluation.normal_benchmark import NormalPictures, evaluate_normals
    from vision3d.geometry.normals import convert_normals
    from vision3d.io.files import check_writable
    from vision3d.io.photo import load_photo
    from vision3d.pipelines.stablenormal import StableNormal
    from vision3d.pipelines.stablenormal.imaging import encode_8bit
    from vision3d.pipelines.stablenormal.options import NormalOptions

    check_writable(out)
    if dataset not in get_args(NormalDataset):
        raise InputError(f"normals on {dataset}", f"choose one of {', '.join(get_args(NormalDataset))}")
    if root is None:
        raise InputError(f"data set {dataset} without its folder", "give --root DIR")
    convert_normals(
        np.zeros((1, 3)), "opencv", frame
    )  # refuses a frame that is none before anything is loaded
    data = NormalPictures(root)
    if not predict:
        return evaluate_normals(data, out, limit=limit)
    pipeline = StableNormal.from_pretrained(weights, turbo=turbo, device=device)
    options = pipeline.recorded(NormalOptions(turbo=turbo), None)
    provenance = options.provenance(pipeline.weights_name, pipeline.weights_sha256)
    provenance = replace(provenance, settings={**provenance.settings, "frame": frame})

    def picture(image: Any, seed: int) -> Any:
        found = pipeline.predict([load_photo(image)], replace(options, seed=seed))[0]
        return encode_8bit(convert_normals(found.normals, "opencv", frame))

    return evaluate_normals(data, out, predict=picture, provenance=provenance, seeds=seeds, limit=limit)


def _evaluate_match(
    dataset: str,
    out: Path,
    root: Path | None,
    weights: str | None,
    split: Path | None,
    limit: int | None,
    sample: int,
    category_prompt: bool,
    published: bool,
    unet: str | None,
    dino: str | None,
    captioner: str | None,
    clip: str | None,
    conditioning: Any,
    features: Any,
    device: str,
) -> Report:
    from vision3d.evaluation.datasets.correspondence import KeypointPairs, PFPascal, SPair71k
    from vision3d.evaluation.datasets.tss import TSS
    from vision3d.evaluation.match_benchmark import evaluate_flow, evaluate_keypoints
    from vision3d.io.files import check_writable
    from vision3d.pipelines.sd_dino import SDDino
    from vision3d.pipelines.sd_dino.options import MatchOptions

    check_writable(out)
    if root is None:
        raise InputError(f"data set {dataset} without its folder", "give --root DIR")
    if dataset not in get_args(MatchDataset):
        raise InputError(f"correspondence on {dataset}", f"choose one of {', '.join(get_args(MatchDataset))}")
    if category_prompt and conditioning != "auto":
        raise InputError(f"--category-prompt with --conditioning {conditioning}", "leave one of the two out")
    readers: dict[str, Callable[[], TSS | KeypointPairs]] = {
        "tss": lambda: TSS(root),
        "spair": lambda: SPair71k(root),
        "pfpascal": lambda: PFPascal(root, pairs=split),
    }
    reader = readers[dataset]()
    pipeline = SDDino.from_pretrained(
        weights, unet=unet, dino=dino, captioner=captioner, clip=clip, device=device, features=features
    )
    options = MatchOptions(features=features, conditioning=conditioning)
    if isinstance(reader, TSS):
        return evaluate_flow(pipeline, reader, out, options=options, published=published, limit=limit)
    return evaluate_keypoints(
        pipeline, reader, out, options=options, sample=sample, category_prompt=category_prompt,
        published=published, limit=limit,
    )  # fmt: skip
