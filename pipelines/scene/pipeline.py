"""Intrinsics, metric depth, sharp relative depth and normals of one photograph, and the surface they agree on.

The four tasks run on one photograph after the other, so that its latents are still there when the next one asks: with
each method's published preprocessing an autoencoder encodes once per distinct canvas, and with the common
preprocessing once in all (see :mod:`vision3d.backbone.sharing`).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from vision3d.camera import Intrinsics
from vision3d.errors import WeightsError
from vision3d.io.photo import Photo
from vision3d.pipelines.scene.options import SceneOptions
from vision3d.progress import say
from vision3d.results import DepthPrediction
from vision3d.scene import ScenePrediction

if TYPE_CHECKING:
    from vision3d.pipelines.primedepth import PrimeDepth

SATURATED = 0.98
"""Share of the farthest metric depth beyond which outdoor depth is taken as having no end."""


@dataclass(frozen=True)
class Tasks:
    """The four dense tasks, as functions of one photograph; anything with the same face will do.

    Attributes:
        calibrate: photograph → prediction with ``camera`` (for the photograph's size), ``covariance``, ``provenance``.
        metric_depth: photograph, camera → :class:`DepthPrediction` in metres.
        relative_depth: photograph → :class:`DepthPrediction`, affine-invariant inverse depth, perhaps with
            segmentation; or None to go without.
        normals: photograph → prediction with ``normals`` (H, W, 3), OpenCV camera axes, and ``provenance``.
        farthest: metres at which the metric depth ends, or None.
    """

    calibrate: Callable[[Photo], Any]
    metric_depth: Callable[[Photo, Intrinsics], DepthPrediction]
    relative_depth: Callable[[Photo], DepthPrediction] | None
    normals: Callable[[Photo], Any]
    farthest: float | None = None


class Scene(ScenePrediction):
    """A metric scene that knows how to make itself from a photograph; see :class:`ScenePrediction`."""

    @classmethod
    def from_photo(
        cls,
        source: Any,
        *,
        pipeline: ScenePipeline | None = None,
        weights: dict[str, str | Path] | None = None,
        device: str = "auto",
        memory: str | int = "auto",
        **options: Any,
    ) -> Scene:
        """The scene that a photograph shows.

        Args:
            source: a path, Pillow image, array or tensor.
            pipeline: made before, for many photographs; by default one is loaded.
            weights: by method ("primedepth", "stablenormal", "dmcalib"): a name, file or folder.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
            memory: budget such as ``6.5G`` for each method.
            options: fields of :class:`SceneOptions`.

        Raises:
            InputError: the photograph cannot be used, or an option is out of range.
            WeightsError: weights that are missing, damaged or foreign.
        """
        from vision3d.io.images import load_photo

        chosen = SceneOptions(**options)
        chosen.check()
        photo = load_photo(source)
        if pipeline is None:
            pipeline = ScenePipeline.from_pretrained(weights, turbo=chosen.fast, device=device, memory=memory)
        return pipeline.predict([photo], chosen)[0]


class ScenePipeline:
    """The three methods of a scene, their equal networks shared.

    Args:
        depth: PrimeDepth.
        normals: StableNormal.
        calibration: DM-Calib with its depth networks.

    Attributes:
        seconds: of each part of the last scene.
    """

    def __init__(self, depth: PrimeDepth | None, normals: Any, calibration: Any) -> None:
        self.depth, self.normals, self.calibration = depth, normals, calibration
        self.seconds: dict[str, float] = {}

    @classmethod
    def from_pretrained(
        cls,
        weights: dict[str, str | Path] | None = None,
        *,
        turbo: bool = False,
        device: str = "auto",
        memory: str | int = "auto",
        torch_dtype: Any = None,
    ) -> ScenePipeline:
        """Loads the three methods; equal networks among them are loaded once.

        Args:
            weights: by method ("primedepth", "stablenormal", "dmcalib"): a name, file or folder; others take the
                official ones if they were pulled, else the embedded ones.
            turbo: the normals take one step, so their refinement is not loaded.
            device, memory, torch_dtype: as for each method.
        """
        from vision3d.pipelines.dmcalib import DMCalib
        from vision3d.pipelines.primedepth import PrimeDepth
        from vision3d.pipelines.stablenormal import StableNormal

        given = weights or {}
        common: dict[str, Any] = {"device": device, "memory": memory, "torch_dtype": torch_dtype}
        depth = PrimeDepth.from_pretrained(given.get("primedepth"), **common)
        normals = StableNormal.from_pretrained(given.get("stablenormal"), turbo=turbo, **common)
        calibration = DMCalib.from_pretrained(given.get("dmcalib"), **common)
        if calibration.depth_unet is None:
            raise WeightsError("these DM-Calib weights have no depth networks", "a scene needs metric depth")
        gc.collect()  # of networks that were replaced by equal ones
        return cls(depth, normals, calibration)

    def tasks(self, options: SceneOptions, photo: Photo) -> Tasks:
        """The four tasks with these settings for one photograph."""
        from vision3d.pipelines.dmcalib.options import CalibrationOptions
        from vision3d.pipelines.primedepth.options import DepthOptions
        from vision3d.pipelines.stablenormal.options import NormalOptions

        canvas = self.canvas(options)
        chosen = CalibrationOptions(**options.calibration(self.calibration.config.steps))
        if canvas is not None:
            chosen = replace(chosen, max_size=canvas)
        if canvas is not None and chosen.focal is not None:
            chosen = replace(chosen, focal=chosen.focal * canvas / max(photo.size))
        segmentation = (
            options.may_have_sky and self.depth is not None and self.depth.segmentation_head is not None
        )
        depth_options = DepthOptions(**options.depth(segmentation=segmentation, canvas=canvas))
        normal_options = NormalOptions(**options.normals())
        domain = str(chosen.completed(self.calibration.config).domain)
        relative = self.depth
        return Tasks(
            calibrate=lambda photo: self.calibration.calibrate([photo], chosen)[0],
            metric_depth=lambda photo, camera: self.calibration.depth(
                photo, camera, replace(chosen, depth=True)
            ),
            relative_depth=None
            if relative is None
            else lambda photo: relative.predict([photo], depth_options)[0],
            normals=lambda photo: self.normals.predict([photo], normal_options)[0],
            farthest=float(self.calibration.config.range_of(domain)),
        )

    def predict(self, photos: Sequence[Photo], options: SceneOptions | None = None) -> list[Scene]:
        """Scenes of photographs, in order, one after the other.

        Raises:
            InputError: an option is out of range, or a photograph shows nothing with a depth.
        """
        options = options or SceneOptions()
        options.check()
        options = options.completed(self.calibration.config)
        scenes = []
        for photo in photos:
            self.seconds = {}
            tasks, canvas = self.tasks(options, photo), self.canvas(options)
            scenes.append(build_scene(photo, tasks, options, canvas=canvas, seconds=self.seconds))
        return scenes

    def canvas(self, options: SceneOptions) -> int | None:
        """Side of the common canvas, or None if each task prepares the photograph in its own way."""
        return (options.canvas or int(self.calibration.config.max_size)) if options.common else None

    def __call__(self, images: Any, **options: Any) -> Scene | list[Scene]:
        """Scenes of whatever holds images; ``options`` are fields of :class:`SceneOptions`.

        Returns:
            One scene for one image, else a list of them in order.
        """
        from vision3d.io.images import holds_many, iter_photos, load_photo

        chosen = SceneOptions(**options)
        if isinstance(images, (list, tuple)) or holds_many(images):
            return [self.predict([ref.load()], chosen)[0] for ref in iter_photos(images)]
        return self.predict([load_photo(images)], chosen)[0]


def build_scene(
    photo: Photo,
    tasks: Tasks,
    options: SceneOptions | None = None,
    *,
    canvas: int | None = None,
    seconds: dict[str, float] | None = None,
) -> Scene:
    """Run the four tasks on a photograph and fuse what they say.

    Args:
        photo: loaded photograph.
        tasks: the methods.
        options: settings.
        canvas: side of the common canvas in pixels, or None to give each task the photograph itself.
        seconds: filled with the time of each part.

    Raises:
        InputError: nothing in the photograph has a depth.
    """
    options = options or SceneOptions()
    clock = _Clock(seconds if seconds is not None else {})
    view = CommonView.of(photo, canvas) if canvas is not None else None
    with clock("camera"):
        calibrated = tasks.calibrate(view.small if view else photo)
    given: Intrinsics = calibrated.camera
    camera = given.resized(photo.size[1], photo.size[0]) if view else given
    sees = view.canvas if view else photo
    with clock("metric depth"):
        metric = tasks.metric_depth(sees, view.camera(given) if view else camera)
    relative = None
    if tasks.relative_depth is not None:
        with clock("relative depth"):
            relative = tasks.relative_depth(sees)
    with clock("normals"):
        normals = tasks.normals(sees)

    def whole(values: np.ndarray, *, labels: bool = False) -> np.ndarray:
        return view.back(values, labels=labels) if view else values

    metres = np.where(whole(metric.usable(), labels=True), whole(metric.depth), np.nan)
    inverse = None if relative is None else whole(relative.depth)
    field = whole(normals.normals)
    length = np.linalg.norm(field, axis=-1, keepdims=True)
    field = np.where(length > 0.5, field / np.where(length > 0.5, length, 1), 0)
    sky = None
    if options.may_have_sky:
        labels = None if relative is None or relative.segmentation is None else relative.segmentation
        sky = find_sky(metres, None if labels is None else whole(labels, labels=True), tasks.farthest)
    covariance = getattr(calibrated, "covariance", None)
    if view is not None and covariance is not None:
        # The covariance is in pixels of the canvas' photograph.
        height, width = photo.size
        factor = np.array([width / given.width, height / given.height] * 2)
        covariance = np.asarray(covariance) * np.outer(factor, factor)
    sources = {"camera": calibrated.provenance, "metric depth": metric.provenance}
    if relative is not None:
        sources["relative depth"] = relative.provenance
    sources["normals"] = normals.provenance
    with clock("fusion"):
        scene = Scene.from_maps(
            camera=camera,
            metric=metres,
            normals=field,
            relative=inverse,
            sky=sky,
            photo=photo,
            options=options.fusion,
            covariance=covariance,
            camera_source=calibrated.camera_source or f"estimated by {calibrated.provenance.method}",
            sources=sources,
            provenance=options.provenance(sources),
        )
    assert isinstance(scene, Scene)
    if scene.alignment is not None:
        say(
            f"{photo.name}: relative and metric depth agree within "
            f"{100 * options.fusion.threshold:.0f} % on {100 * scene.alignment['inlier_share']:.0f} % of the pixels"
        )
    return scene


def find_sky(
    metric: np.ndarray, segmentation: np.ndarray | None, farthest: float | None
) -> np.ndarray | None:
    """(H, W) bool where there is sky, or None if there is none.

    Sky is what the segmentation calls so, unless it is nearer than a tenth of the farthest depth, and what lies where
    the metric depth ends.

    Args:
        metric: (H, W) metres, NaN where there is none.
        segmentation: (H, W) ADE20K classes, or None.
        farthest: where the metric depth ends, or None.
    """
    from vision3d.synthetic.ade20k import INDEX

    with np.errstate(invalid="ignore"):
        sky = np.zeros(metric.shape, bool) if farthest is None else metric >= SATURATED * farthest
        if segmentation is not None:
            near = metric < 0.1 * farthest if farthest is not None else np.zeros(metric.shape, bool)
            sky |= (segmentation == INDEX["sky"]) & ~near
    return sky if sky.any() else None


@dataclass(frozen=True)
class CommonView:
    """One photograph as all tasks see it: scaled to a longest side, in the middle of a square black canvas.

    The calibration network is trained on such canvases and pads by itself, so it gets the scaled photograph; what it
    then encodes equals what the others are given, value by value.

    Attributes:
        small: the scaled photograph.
        canvas: the square one.
        left, top: where it lies in there.
        size: (height, width) of the original.
    """

    small: Photo
    canvas: Photo
    left: int
    top: int
    size: tuple[int, int]

    @classmethod
    def of(cls, photo: Photo, side: int) -> CommonView:
        """The view of a photograph on a canvas of ``side`` × ``side`` pixels."""
        height, width = photo.size
        scale = side / max(height, width)
        w = side if width >= height else max(1, int(width * scale))
        h = side if height >= width else max(1, int(height * scale))
        pixels = photo.rgb8
        if (h, w) != (height, width):
            pixels = np.asarray(Image.fromarray(pixels).resize((w, h), Image.Resampling.BICUBIC))
        focal = None if photo.focal_px is None else photo.focal_px * w / width
        small = Photo(pixels, photo.name, photo.path, focal)
        left, top = (side - w) // 2, (side - h) // 2
        square = np.zeros((side, side, 3), np.uint8)
        square[top : top + h, left : left + w] = pixels
        return cls(small, Photo(square, photo.name, photo.path, focal), left, top, (height, width))

    def camera(self, small: Intrinsics) -> Intrinsics:
        """The canvas' camera of that of the scaled photograph."""
        height, width = self.canvas.size
        return small.cropped(-self.left, -self.top, width, height)

    def back(self, values: np.ndarray, *, labels: bool = False) -> np.ndarray:
        """A map (side, side[, C]) of the canvas at the original's size; ``labels`` are not interpolated."""
        h, w = self.small.size
        inside = np.ascontiguousarray(values[self.top : self.top + h, self.left : self.left + w])
        kind = inside.dtype
        if kind.kind == "b":
            inside = inside.astype(np.uint8)
        mode = cv2.INTER_NEAREST_EXACT if labels else cv2.INTER_LINEAR
        return cv2.resize(inside, (self.size[1], self.size[0]), interpolation=mode).astype(kind)


class _Clock:
    """Adds up the seconds of named parts."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self._name, self._start = "", 0.0

    def __call__(self, name: str) -> _Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._start
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + spent
