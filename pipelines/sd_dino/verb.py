"""``vision3d match`` and ``vision3d swap``: correspondence between images, and what it is good for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vision3d.errors import InputError
from vision3d.pipelines.sd_dino.options import Conditioning, Features, MatchOptions, MetricName, Projection
from vision3d.progress import say
from vision3d.runs import RunSummary, photographs_digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from vision3d.io.images import Photo
    from vision3d.matches import Matches
    from vision3d.pipelines.sd_dino.geometric import GeometricMatcher
    from vision3d.pipelines.sd_dino.pairs import Images, PairJob
    from vision3d.pipelines.sd_dino.pipeline import ImageFeatures, LoadingPlan, SDDino
    from vision3d.pipelines.sd_dino.swap import SwapResult
    from vision3d.prediction import Provenance

Geometric = Literal["loftr", "lightglue", "efficientloftr", "superglue"]


@dataclass(frozen=True)
class Networks:
    """Which weights, and where to run them.

    Attributes:
        weights: "mini" (the embedded ones), a pulled name, a Stable Diffusion file or folder, or a folder of SD+DINO;
            by default the official ones if they were pulled, else the embedded ones.
        unet: UNet file or folder instead of that of the weights, such as CleanDIFT's for --features clean.
        dino: DINO file, folder (also DINOv3's) or pulled name (dinov2-vitb14, dino-vits8, ...) instead of the weights'
            own.
        captioner: ODISE's checkpoint (CC BY-NC-SA 4.0), for implicit captions.
        clip: folder of CLIP ViT-L/14 at 336, for implicit captions.
        sd_size: side of the canvas for Stable Diffusion in pixels, by default the weights' own (960 for the published).
        dino_size: side of the canvas for DINO in pixels, by default the weights' own (840 for the published).
        dino_stride: pixels between DINO's tokens, by default the weights' own (the patch for the published).
        device: auto, cpu, cuda, cuda:1 or mps.
        dtype: precision; auto is 16 bits on CUDA, else fp32.
        memory: budget such as 4G; networks that do not fit it at once are loaded in turn.
        cache: keep the features of images on disk.
    """

    weights: str | None = None
    unet: str | None = None
    dino: str | None = None
    captioner: str | None = None
    clip: str | None = None
    sd_size: int | None = None
    dino_size: int | None = None
    dino_stride: int | None = None
    device: str = "auto"
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    memory: str = "auto"
    cache: bool = True

    def settings(self) -> dict[str, Any]:
        """Settings of :class:`~vision3d.pipelines.sd_dino.options.SDDinoConfig` that were given."""
        names = ("sd_size", "dino_size", "dino_stride")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}

    def plan(self, features: Features) -> LoadingPlan:
        """What would be loaded."""
        from vision3d.pipelines.sd_dino.pipeline import LoadingPlan

        return LoadingPlan.of(
            self.weights, unet=self.unet, dino=self.dino, captioner=self.captioner, clip=self.clip, features=features,
            settings=self.settings(),
        )  # fmt: skip

    def provenance(self, options: MatchOptions, plan: LoadingPlan, **more: Any) -> Provenance:
        """Where results will come from, known before any network is loaded."""
        from vision3d.device import dtype_name

        dtype = dtype_name(self.dtype, self.device)
        return options.provenance(plan.name, plan.sha256, plan.config, dtype=dtype, **more)

    def load(self, features: Features, temporary: Path | None = None) -> SDDino:
        """The loaded method; without a cache on disk, features go to a temporary folder."""
        from vision3d.backbone.featurecache import FeatureCache
        from vision3d.pipelines.sd_dino.pipeline import SDDino

        cache: Any = True if self.cache else FeatureCache(temporary) if temporary is not None else False
        return SDDino.from_pretrained(
            self.weights,
            unet=self.unet,
            dino=self.dino,
            captioner=self.captioner,
            clip=self.clip,
            torch_dtype=self.dtype,
            device=self.device,
            memory=self.memory,
            cache=cache,
            features=features,
            **self.settings(),
        )


def match(
    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")],
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")],
    out: Path,
    points: tuple[str, ...] = (),
    dense: bool = False,
    mask_a: Path | None = None,
    mask_b: Path | None = None,
    geometric: Geometric | None = None,
    geometric_weights: str | None = None,
    rank: bool = False,
    features: Features = "sd+dino",
    conditioning: Conditioning = "auto",
    prompt: str | None = None,
    metric: MetricName = "auto",
    projection: Projection = "auto",
    subcell: bool = True,
    flip: bool = False,
    max_matches: int = 500,
    min_confidence: float = 0.0,
    descriptors: Literal["auto", "keep", "drop"] = "auto",
    seed: int = 0,
    recursive: bool = False,
    overwrite: bool = False,
    net: Annotated[Networks, tyro.conf.arg(name="")] = Networks(),
) -> RunSummary:
    """Find which point of one photograph corresponds to which of another, also between different things (SD+DINO).

    A and B are images, folders or patterns; all pairs are matched, each image is encoded once. For each pair,
    OUT/A__B/ gets matches.npz, matches.csv, preview.png, with --dense the flow both ways (.flo and a picture), and
    result.json. Pairs that are complete are skipped; a bad file does not stop the others. `vision3d view` shows them:
    click a point, see where it goes.

    Args:
        a: image, folder or pattern.
        b: image, folder or pattern.
        out: output folder.
        points: points of A to find in B: "x,y" in pixels, or CSV files with columns x and y; by default those that
            match mutually, the most confident first.
        dense: also the flow from every pixel, both ways.
        mask_a: picture of the object in A, white inside; only its points are matched.
        mask_b: picture of the object in B; only places inside are matched to.
        geometric: match views of the same scene instead, with this network.
        geometric_weights: its weights: file or folder, or name on the Hugging Face hub.
        rank: also rank the images of B by how well they match each of A: OUT/ranking.csv.
        features: of Stable Diffusion and DINO, or of one; dift reads Stable Diffusion as DIFT does, clean without
            noise, for a UNet that was tuned for it (CleanDIFT).
        conditioning: of Stable Diffusion: empty prompt, text, or implicit captions.
        prompt: caption for --conditioning text, such as "a photo of a cat".
        metric: how descriptors are compared.
        projection: PCA of each pair, exact or randomised as published; of the whole data set; or none. auto is exact,
            and none for dift.
        subcell: places between cells instead of at their middles.
        flip: try A's mirror image, too, and keep what fits B better, for things that face different ways; left legs
            then go to right ones.
        max_matches: at most so many matches where no points are given.
        min_confidence: of the matches where no points are given.
        descriptors: keep them, from which the viewer tells where any point goes (descriptors.npz, up to 22 MB for a
            pair with the published weights); auto keeps those of a single pair.
        seed: of the randomised projection.
        recursive: look into nested folders.
        overwrite: compute again what is there.
        net: weights and device.
    """
    from vision3d.io.files import check_writable
    from vision3d.matches import pair_fingerprint
    from vision3d.pipelines.sd_dino.pairs import Images, pair_jobs, run_pairs

    sets = Images([a], recursive=recursive), Images([b], recursive=recursive)
    jobs = pair_jobs(*sets)
    check_writable(out)
    asked = parse_points(points) if points else None
    if (mask_a or mask_b) and len(jobs) != 1:
        raise InputError("masks for several pairs", "give masks with two single images")
    masks = _masks(mask_a, mask_b)
    options = MatchOptions(
        features=features, conditioning=conditioning, prompt=prompt, metric=metric, projection=projection,
        seed=seed, subcell=subcell, flip=flip, dense=dense, max_matches=max_matches, min_confidence=min_confidence,
        descriptors=descriptors == "keep" or (descriptors == "auto" and len(jobs) == 1 and geometric is None),
    )  # fmt: skip
    options.check()
    if geometric is not None and (options.descriptors or flip):
        asked_for = "--flip" if flip else "--descriptors keep"
        raise InputError(f"{asked_for} with --geometric", "leave one of the two out")
    more = {
        "points": None if asked is None else asked.tolist(),
        "masks": [None if m is None else _digest(m) for m in masks],
    }
    matcher: Matcher
    if geometric is not None:
        matcher = GeometricPairs(geometric, geometric_weights, net.device, options, masks, asked, more)
    else:
        matcher = SemanticPairs(net, options, masks, asked, sets, more)
    with matcher:
        summary = run_pairs(
            jobs,
            sets,
            matcher,
            out,
            kind="matches",
            fingerprint=lambda x, y: pair_fingerprint(matcher.fingerprint(x), y),
            overwrite=overwrite,
        )
        if rank:
            _write_ranking(out, jobs, summary)
    return summary


class Matcher(ABC):
    """Matches pairs; loads what it needs when the first one is asked for."""

    @abstractmethod
    def fingerprint(self, photo: Photo) -> str:
        """Of the work on a pair, as far as it is known from the first image."""

    @abstractmethod
    def __call__(self, job: PairJob, first: Photo, second: Photo) -> Matches:
        """The matches of a pair."""

    def __enter__(self) -> Matcher:
        return self

    def __exit__(self, *exception: object) -> None:
        return None


class SemanticPairs(Matcher):
    """Pairs by SD+DINO.

    Args:
        net: weights and device.
        options: settings of the run.
        masks: of the two images, where there is one pair.
        points: of A, or None.
        sets: the images; with a projection for the data set all of them are encoded first.
        more: settings that results are to name.
    """

    def __init__(
        self,
        net: Networks,
        options: MatchOptions,
        masks: tuple[np.ndarray | None, np.ndarray | None],
        points: np.ndarray | None,
        sets: tuple[Images, Images],
        more: dict[str, Any],
    ) -> None:
        import tempfile

        self.net, self.options, self.masks, self.points, self.sets = net, options, masks, points, sets
        self._common = options.projection == "dataset" and options.uses_sd
        if self._common:
            more = {**more, "images": photographs_digest(r for s in sets for r in s.refs.values())}
        self._provenance = net.provenance(options, net.plan(options.features), **more)
        self._pipeline: SDDino | None = None
        self._folder = None if net.cache else tempfile.TemporaryDirectory(prefix="vision3d-features-")
        self._bases: Any = None

    def fingerprint(self, photo: Photo) -> str:
        """See :class:`Matcher`."""
        return self._provenance.fingerprint(photo)

    def __exit__(self, *exception: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def _load(self) -> SDDino:
        from vision3d.pipelines.sd_dino.pairs import MEMORY, Kept

        if self._pipeline is None:
            temporary = Path(self._folder.name) if self._folder is not None else None
            pipeline = self.net.load(self.options.features, temporary)
            self.features = Kept(lambda key: self._encode(pipeline, key).half(), MEMORY)
            if self._common:
                self._bases = pipeline.common_basis(self._readable(), self.options)
            self._pipeline = pipeline
        return self._pipeline

    def _readable(self) -> Iterator[ImageFeatures]:
        """Features of all images but those that cannot be read, which their own pairs say."""
        from vision3d.progress import progress

        keys = [f"{i} {name}" for i, images in enumerate(self.sets) for name in images]
        for key in progress(keys, description="images for the common projection"):
            with suppress(InputError):
                yield self.features(key)

    def _encode(self, pipeline: SDDino, key: str) -> ImageFeatures:
        which, _, name = key.partition(" ")
        photo = self.sets[int(which.removeprefix("-"))].photo(name)
        return pipeline.encode(photo, self.options, mirrored=which.startswith("-"))

    def __call__(self, job: PairJob, first: Photo, second: Photo) -> Matches:
        """See :class:`Matcher`."""
        pipeline = self._load()
        b = self.features(f"1 {job.second}")
        pairs = []
        for key in ("0", "-0") if self.options.flip else ("0",):  # -0: mirrored
            a = self.features(f"{key} {job.first}")
            if self.options.projection == "dataset":
                bases = self._bases or {}
                one, other = (pipeline.describe_in(f, bases, self.options) for f in (a, b))
                pairs.append((one, other))
            else:
                pairs.append(pipeline.describe(a, b, self.options))
        pair, mirrored = pipeline.better_pose(pairs, self.masks, self.options)
        found = pipeline.match_described(
            first, second, pair, self.points, masks=self.masks, options=self.options, mirrored=mirrored
        )
        found.provenance = self._provenance
        return found


class GeometricPairs(Matcher):
    """Pairs by a network for views of one scene.

    Args:
        name: of the network.
        weights: file, folder or name on the hub.
        device: where to run it.
        options: settings of the run, as far as they apply.
        masks: of the two images, where there is one pair.
        points: must be None.
        more: settings that results are to name.
    """

    def __init__(
        self,
        name: Geometric,
        weights: str | None,
        device: str,
        options: MatchOptions,
        masks: tuple[np.ndarray | None, np.ndarray | None],
        points: np.ndarray | None,
        more: dict[str, Any],
    ) -> None:
        if points is not None:
            raise InputError("points with --geometric", "leave one of the two out: it finds its own points")
        from vision3d.pipelines.sd_dino.geometric import GeometricOptions, weights_checksum

        self.name, self.weights, self.device, self.masks = name, weights, device, masks
        self.options = GeometricOptions(name, options.max_matches, options.min_confidence, options.dense)
        self._provenance = self.options.provenance(weights, weights_checksum(name, weights), **more)
        self._matcher: GeometricMatcher | None = None

    def fingerprint(self, photo: Photo) -> str:
        """See :class:`Matcher`."""
        return self._provenance.fingerprint(photo)

    def __call__(self, job: PairJob, first: Photo, second: Photo) -> Matches:
        """See :class:`Matcher`."""
        if self._matcher is None:
            from vision3d.pipelines.sd_dino.geometric import GeometricMatcher

            self._matcher = GeometricMatcher.from_pretrained(self.name, self.weights, device=self.device)
        found = self._matcher.match(first, second, masks=self.masks, options=self.options)
        found.provenance = self._provenance
        return found


def swap(
    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")],
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")],
    out: Path,
    mask_a: str = "auto",
    mask_b: str = "auto",
    refine: float = 0.0,
    refine_prompt: str = "",
    refine_steps: int = 20,
    published: bool = False,
    resolution: int = 156,
    features: Features = "sd+dino",
    conditioning: Conditioning = "auto",
    prompt: str | None = None,
    projection: Projection = "auto",
    flip: bool = False,
    seed: int = 0,
    click: bool = False,
    host: str = "127.0.0.1",
    port: int = 8080,
    open: bool = True,
    overwrite: bool = False,
    net: Annotated[Networks, tyro.conf.arg(name="")] = Networks(),
) -> RunSummary:
    """Put the object of photograph B in the place of that of photograph A (SD+DINO).

    OUT/A__B/ gets swap.png, mask_a.png, mask_b.png, preview.png and result.json. With --click you mark the objects in
    the browser; the masks that were saved repeat the run without it.

    Args:
        a: the photograph that is changed.
        b: the photograph whose object is taken.
        out: output folder.
        mask_a: picture of the object in A, white inside; "x,y" a point on it, for Segment Anything; or auto: the
            photograph's transparency, else rembg, if it is installed.
        mask_b: the same for B.
        refine: share of the diffusion steps, such as 0.4, through which the result goes again to mend its seams.
        refine_prompt: caption during refinement.
        refine_steps: denoising steps of the whole schedule.
        published: take the nearest cell's colour as the published script does, instead of a smooth place.
        resolution: cells along a side for --published.
        features: of Stable Diffusion and DINO, or of one, or read in other ways, as for match.
        conditioning: of Stable Diffusion: empty prompt, text, or implicit captions.
        prompt: caption for --conditioning text.
        projection: PCA of the pair, exact or randomised as published, or none.
        flip: try A's mirror image, too, and keep what fits B better, for things that face different ways; left legs
            then go to right ones.
        seed: of refinement and randomised projection.
        click: mark those objects in the browser whose mask is auto.
        host: address to listen on for --click; only this machine can connect to the default.
        port: to listen on for --click; the next free one is taken if it is in use, 0 is any.
        open: open the browser for --click.
        overwrite: compute again what is there.
        net: weights and device.
    """
    from vision3d.io.files import check_writable
    from vision3d.matches import pair_fingerprint
    from vision3d.pipelines.sd_dino.masks import object_mask
    from vision3d.pipelines.sd_dino.pairs import Images, pair_jobs, run_pairs
    from vision3d.prediction import refuse_other_kind

    sets = Images([a]), Images([b])
    if len(sets[0]) != 1 or len(sets[1]) != 1:
        raise InputError("several images to swap", "give two single images")
    check_writable(out)
    if not 0 <= refine <= 1:
        raise InputError(f"refinement of {refine}", "give a share from 0 to 1, such as 0.4")
    if refine and (net.unet is not None or features in ("clean", "clean+dino")):
        raise InputError("refinement by a UNet that was tuned for features", "leave --refine or --unet out")
    if not 8 <= resolution <= 1024:
        raise InputError(f"resolution {resolution}", "give 8 to 1024 cells")
    if projection == "dataset":
        raise InputError("projection 'dataset' for one pair", "choose auto, exact, lowrank or none")
    options = MatchOptions(
        features=features,
        conditioning=conditioning,
        prompt=prompt,
        projection=projection,
        flip=flip,
        seed=seed,
    )
    options.check()
    jobs = pair_jobs(*sets)
    refuse_other_kind(out / jobs[0].name, "swap")  # before anybody marks objects
    photos = sets[0].photo(jobs[0].first), sets[1].photo(jobs[0].second)
    plan = net.plan(features)
    clicked: Iterator[np.ndarray] = iter(())
    sources = mask_a, mask_b
    if click:
        if "auto" not in sources:
            raise InputError("--click where both masks are given", "leave one of the three out")
        # By name, as the command line finds its verbs: the viewer stands above this module.
        ask = import_module("vision3d.viewer.clicking").ask_masks
        asked = [photo for photo, source in zip(photos, sources, strict=True) if source == "auto"]
        clicked = iter(ask(asked, host=host, port=port, open_browser=open))
    masks = tuple(
        next(clicked) if click and source == "auto" else object_mask(photo, source, net.device)
        for photo, source in zip(photos, sources, strict=True)
    )
    more = {
        "refine": refine, "refine_prompt": refine_prompt, "refine_steps": refine_steps, "refine_seed": seed,
        "published": published, "resolution": resolution, "masks": [_digest(m) for m in masks],
    }  # fmt: skip
    provenance = net.provenance(options, plan, **more)

    def process(job: PairJob, first: Photo, second: Photo) -> SwapResult:
        del job
        result = net.load(features).swap(
            first, second, (masks[0], masks[1]), refine=refine, refine_prompt=refine_prompt,
            refine_steps=refine_steps, seed=seed, published=published, resolution=resolution, options=options,
        )  # fmt: skip
        result.provenance = provenance
        return result

    summary = run_pairs(
        jobs,
        sets,
        process,
        out,
        kind="swap",
        fingerprint=lambda x, y: pair_fingerprint(provenance.fingerprint(x), y),
        overwrite=overwrite,
        description="swap",
    )
    if click:
        folder = out / jobs[0].name
        say(f"without clicking: --mask-a {folder / 'mask_a.png'} --mask-b {folder / 'mask_b.png'}")
    return summary


def parse_points(words: tuple[str, ...]) -> np.ndarray:
    """(N, 2) x, y of words such as "12,34.5" and of CSV files.

    Raises:
        InputError: neither of the two.
    """
    import numpy as np

    from vision3d.matches import read_points

    found = []
    for word in words:
        parts = word.split(",")
        try:
            place = [float(part) for part in parts]
        except ValueError:
            if not Path(word).suffix:
                raise InputError(
                    f"point {word!r}", 'write it as "x,y" in pixels, or name a CSV file'
                ) from None
            found.append(read_points(word))
            continue
        if len(place) != 2:
            raise InputError(f"point {word!r}", 'write it as "x,y" in pixels')
        found.append(np.array([place]))
    return np.concatenate(found)


def _masks(*paths: Path | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    from vision3d.pipelines.sd_dino.masks import read_mask

    first, second = (None if path is None else read_mask(path) for path in paths)
    return first, second


def _digest(mask: np.ndarray) -> str:
    import hashlib

    import numpy as np

    return hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()


def _write_ranking(out: Path, jobs: list[PairJob], summary: RunSummary) -> None:
    """``ranking.csv``: for each image of A those of B, the best first."""
    import csv

    import numpy as np

    from vision3d.io.files import atomic_path
    from vision3d.pipelines.sd_dino.retrieval import score_matches

    folders = {o.name: o.folder for o in summary.outcomes if o.folder is not None}
    rows = []
    for job in jobs:
        folder = folders.get(job.name)
        if folder is not None:
            with np.load(folder / "matches.npz") as arrays:
                rows.append((job.first, job.second, score_matches(arrays["confidence"], arrays["mutual"])))
    rows.sort(key=lambda row: (row[0], -row[2], row[1]))
    with (
        atomic_path(out / "ranking.csv") as path,
        path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["a", "b", "score"])
        writer.writerows((a, b, f"{score:.5f}") for a, b, score in rows)
