"""``vision3d calibrate``: the camera of photographs, and their metric depth, with DM-Calib."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vision3d.engines import EngineName, engine_of
from vision3d.errors import InputError
from vision3d.progress import say, warn
from vision3d.runs import (
    Process,
    RunSummary,
    check_run,
    photo_refs,
    photographs_digest,
    readable_refs,
    run_folder,
)

if TYPE_CHECKING:
    from vision3d.camera import Intrinsics
    from vision3d.io.images import Photo, PhotoRef
    from vision3d.pipelines.dmcalib.options import CalibrationOptions
    from vision3d.pipelines.dmcalib.pipeline import DMCalib
    from vision3d.prediction import Prediction


def calibrate(
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")],
    out: Path,
    depth: bool = False,
    domain: Literal["indoor", "outdoor", "object", "any"] | None = None,
    scale_10: bool | None = None,
    weights: str | None = None,
    base: str | None = None,
    calib_subfolder: str | None = None,
    depth_subfolder: str | None = None,
    embeddings: Path | None = None,
    steps: int | None = None,
    ensemble: int | None = None,
    noise: Literal["gaussian", "zeros"] | None = None,
    spacing: Literal["leading", "trailing"] | None = None,
    max_size: int | None = None,
    mode: Literal["robust", "reference"] = "robust",
    quantize: bool = False,
    square_pixels: bool = False,
    centered: bool = False,
    focal: float | None = None,
    use_exif: bool = False,
    shared: bool = False,
    exact_size: bool = True,
    formats: tuple[Literal["exr", "npz", "obj"], ...] = (),
    export: Literal["colmap", "nerfstudio"] | None = None,
    poses: Literal["opencv", "colmap"] | None = None,
    seed: int = 666,
    batch_size: int = 1,
    device: str = "auto",
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto",
    memory: str = "auto",
    engine: EngineName = "local",
    recursive: bool = False,
    overwrite: bool = False,
) -> RunSummary:
    """Estimate the intrinsics of photographs, and with --depth their depth in metres (DM-Calib).

    For each input, OUT/NAME/ gets camera.json (fx, fy, cx, cy in pixels of the photograph, their covariance, the
    field of view, and what EXIF says), preview.png and result.json; with --depth also metric_depth.npy (float32,
    metres), metric_depth.png (16 bits), points.ply and mesh.glb. Inputs whose results are complete and right are
    skipped; a bad file does not stop the others.

    Args:
        inputs: photographs, folders, patterns such as 'photos/*.jpg', or videos.
        out: output folder.
        depth: also predict metric depth.
        domain: of the depth: indoor, outdoor, object, or any for the empty prompt; by default the weights' own
            (outdoor for the published ones).
        scale_10: whether the depth decoder's output spans [-10, 10]; by default as the weights say.
        weights: "mini" (the embedded ones), a pulled name, or a folder; by default the official ones if they were
            pulled, else the embedded ones.
        base: folder or file of Stable Diffusion 2.1, for weights that come without it.
        calib_subfolder: calibration network in the weights' folder, e.g. calib2.
        depth_subfolder: depth networks in the weights' folder.
        embeddings: safetensors file of the prompts' embeddings, in place of a text encoder.
        steps: denoising steps; the weights' own by default (20 for the published ones). Few are fast.
        ensemble: noise samples per photograph, in one batch; from zeros, 2 adds what the mirrored
            photograph says.
        noise: gaussian, or zeros for weights that were trained for one step.
        spacing: of the steps over the schedule; trailing for fewer than 10 steps.
        max_size: side of the canvas that cameras are predicted on, a multiple of 8.
        mode: robust decoding, or the published one.
        quantize: pass predicted pictures through 8 bits, as the published code does.
        square_pixels: let fx and fy be equal.
        centered: put the principal point in the middle.
        focal: known focal length in pixels of the photograph.
        use_exif: take EXIF's focal length as known, where there is one.
        shared: all inputs are from one camera: give them the median of their cameras.
        exact_size: pad what is no multiple of 8 for the depth networks; off as in the published code.
        formats: further files to write.
        export: also write all cameras to OUT, as COLMAP's cameras.txt or nerfstudio's transforms.json (not of videos).
        poses: also find where the photographs were taken, relative to the first, and export that, too: opencv for two
            to a few dozen overlapping ones (in metres with --depth), colmap for many of one camera (needs pycolmap).
        seed: of the noise.
        batch_size: photographs that are processed together.
        device: auto, cpu, cuda, cuda:1 or mps.
        dtype: precision; auto is 16 bits on CUDA, else fp32.
        memory: budget such as 6.5G; networks that do not fit at once are loaded in turn.
        engine: local works in this process, ray in processes of the Ray cluster at RAY_ADDRESS, else of this machine.
        recursive: look into nested folders.
        overwrite: compute again what is there.
    """
    from vision3d.device import dtype_name
    from vision3d.pipelines.dmcalib.options import CalibrationOptions

    if poses is not None and export is None:
        raise InputError("poses without a place to write them", "give --export colmap or --export nerfstudio")
    if poses == "colmap":
        need_one_camera(shared or focal is not None)
    total = check_run(inputs, out, recursive=recursive, batch_size=batch_size, memory=memory)
    if total is None and (export == "nerfstudio" or poses is not None):
        raise InputError("a video, of which an export cannot name the frames", "save them as images first")
    options = CalibrationOptions(
        steps=steps,
        ensemble=ensemble,
        seed=seed,
        noise=noise,
        spacing=spacing,
        mode=mode,
        quantize=quantize,
        square_pixels=square_pixels,
        centered=centered,
        focal=focal,
        max_size=max_size,
        depth=depth,
        domain=domain,
        scale_10=scale_10,
        exact_size=exact_size,
        use_exif=use_exif,
        shared=shared,
        dtype=dtype_name(dtype, device),
    )
    options.check()
    source = WeightsChoice(weights, base, calib_subfolder, depth_subfolder, embeddings)
    config, name, sha256 = source.identify()
    options = options.completed(config)
    if depth:
        config.range_of(str(options.domain))
    among = photographs_digest(readable_refs(inputs, recursive=recursive)) if shared else None
    more = {} if among is None else {"shared_by_photographs": among}
    provenance = options.provenance(name, sha256, **more)
    loader = Loader(source, options, device, memory, inputs if shared else (), recursive, more)
    summary = run_folder(
        lambda failed: photo_refs(list(inputs), recursive=recursive, failed=failed),
        loader,
        out,
        kind="camera",
        fingerprint=provenance.fingerprint,
        formats=formats if depth else (),
        batch_size=batch_size,
        engine=engine_of(engine),
        overwrite=overwrite,
        total=total,
        description="cameras",
    )
    if export is not None:
        export_cameras(summary, export, poses, photo_refs(list(inputs), recursive=recursive) if poses else ())
    return summary


@dataclass(frozen=True)
class WeightsChoice:
    """Which weights a person asked for.

    Attributes:
        weights, base, calib_subfolder, depth_subfolder, embeddings: as the verb takes them.
    """

    weights: str | None = None
    base: str | None = None
    calib_subfolder: str | None = None
    depth_subfolder: str | None = None
    embeddings: Path | None = None

    def identify(self) -> tuple[Any, str, str]:
        """Configuration, name and checksum of the weights; no network is loaded for it."""
        from vision3d.pipelines.dmcalib import checkpoint as files
        from vision3d.pipelines.dmcalib.options import DMCalibConfig
        from vision3d.pipelines.dmcalib.pipeline import fingerprint
        from vision3d.weights import resolve

        root, name = resolve("dmcalib", self.weights)
        base = files.find_base(root, self.base)
        name = name if self.calib_subfolder is None else f"{name}, {self.calib_subfolder}"
        checksum = fingerprint(root, base, self.calib_subfolder, self.depth_subfolder)
        return DMCalibConfig.read(root), name, checksum

    def load(self, options: CalibrationOptions, device: str, memory: str) -> DMCalib:
        """The pipeline."""
        from vision3d.pipelines.dmcalib.pipeline import DMCalib

        return DMCalib.from_pretrained(
            self.weights,
            base=self.base,
            calib_subfolder=self.calib_subfolder,
            depth_subfolder=self.depth_subfolder,
            embeddings=self.embeddings,
            torch_dtype=options.dtype,
            device=device,
            memory=memory,
        )


@dataclass(frozen=True)
class Loader:
    """Makes the loaded method; plain data, so that another process can make it, too.

    Attributes:
        source: the weights.
        options: settings of the run.
        device, memory: as the verb takes them.
        shared_inputs: photographs whose common camera is found first; none if each has its own.
        recursive: as the verb takes it.
        more: further settings to record.
    """

    source: WeightsChoice
    options: CalibrationOptions
    device: str
    memory: str
    shared_inputs: tuple[str, ...] = ()
    recursive: bool = False
    more: dict[str, Any] | None = None

    def __call__(self) -> Process:
        """The method, its networks loaded."""
        pipeline = self.source.load(self.options, self.device, self.memory)
        common = self._common_camera(pipeline) if self.shared_inputs else None
        single = replace(self.options, shared=False, depth=self.options.depth and common is None)
        origin = self.options.provenance(pipeline.weights_name, pipeline.weights_sha256, **(self.more or {}))

        def process(photos: Sequence[Photo]) -> Sequence[Prediction]:
            predictions = list(pipeline.stream(photos, single, batch_size=len(photos), provenance=self.more))
            for prediction in predictions:
                prediction.provenance = origin
                if common is not None:
                    prediction.camera, prediction.covariance, prediction.shared_by = common
                    prediction.camera_source = f"estimated by DM-Calib, median of {common[2]} photographs"
                    if self.options.depth:
                        assert prediction.photo is not None
                        prediction.depth = pipeline.depth(
                            prediction.photo, prediction.intrinsics, self.options
                        )
                if prediction.depth is not None:
                    prediction.depth.provenance = origin
                    prediction.depth.camera_source = prediction.camera_source
                say(f"{prediction.photo.name if prediction.photo else 'image'}: {prediction.summary()}")
            return predictions

        return process

    def _common_camera(self, pipeline: DMCalib) -> tuple[Intrinsics, Any, int]:
        """Camera, covariance and number of photographs of all inputs together that show one.

        Raises:
            InputError: none does, or their sizes differ.
        """
        from vision3d.pipelines.dmcalib.pipeline import share_camera

        single = replace(self.options, shared=False, depth=False)
        cameras = []
        for ref in readable_refs(self.shared_inputs, recursive=self.recursive):
            try:
                (prediction,) = pipeline.calibrate([ref.load()], single)
                _ = prediction.intrinsics
            except InputError as error:
                warn(f"{ref.label}: left out of the shared camera ({error})")
                continue
            # The pixels are not needed any more, and there may be many.
            cameras.append(replace_photo(prediction))
        if not cameras:
            raise InputError("no photograph shows a camera to share", "calibrate without --shared")
        shared = share_camera(cameras)[0]
        return shared.intrinsics, shared.covariance, shared.shared_by


def replace_photo(prediction: Any) -> Any:
    """A camera prediction without its photograph and pictures, for keeping many."""
    import dataclasses

    return dataclasses.replace(prediction, photo=None, camera_image=None)


def export_cameras(
    summary: RunSummary, kind: str, method: str | None = None, refs: Iterable[PhotoRef] = ()
) -> None:
    """Write the cameras of a run's results to its output folder, with poses if a method for them is named.

    Raises:
        InputError: the photographs do not overlap enough for poses.
        OutputError: it cannot be written.
    """
    import json

    from vision3d.camera import Intrinsics
    from vision3d.io.colmap import write_model
    from vision3d.io.transforms import write_transforms

    folders = {outcome.name: outcome.folder for outcome in summary.outcomes if outcome.folder is not None}
    labels = {outcome.name: outcome.label for outcome in summary.outcomes if outcome.folder is not None}
    labels = upright_copies(labels, summary.out)
    cameras = {
        name: Intrinsics.from_dict(json.loads((folder / "camera.json").read_text(encoding="utf-8")))
        for name, folder in folders.items()
    }
    where = None
    if method is not None:
        where = find_poses(
            method, [ref for ref in refs if ref.name in folders], cameras, folders, labels, summary.out
        )
        cameras = {name: cameras[name] for name in where}
    names = names_for_colmap(labels) if kind == "colmap" else names_for_nerfstudio(labels, summary.out)
    named = {names[name]: camera for name, camera in cameras.items()}
    placed = None if where is None else {names[name]: pose for name, pose in where.items()}
    if kind == "colmap":
        write_model(summary.out, named, placed)
    else:
        write_transforms(summary.out / "transforms.json", named, placed)


def upright_copies(labels: Mapping[str, str], out: Path) -> dict[str, str]:
    """The photographs' files, or copies of all in ``out/images`` if EXIF turns one of them.

    Results are of upright photographs, but COLMAP and nerfstudio read pixels as they are stored.

    Raises:
        OutputError: the copies cannot be written.
    """
    from vision3d.io.files import atomic_path
    from vision3d.io.images import load_photo

    if not any(_is_turned(Path(label)) for label in labels.values()):
        return dict(labels)
    say(
        f"photographs are turned by EXIF, which other programs do not heed: upright copies are in {out / 'images'}"
    )
    copies = {}
    for name, label in labels.items():
        target = out / "images" / f"{name}.png"
        with atomic_path(target) as path:
            load_photo(label).to_pil().save(path)
        copies[name] = str(target)
    return copies


def _is_turned(path: Path) -> bool:
    from PIL import Image

    from vision3d.io.decode import UNDECODABLE, read_exif

    try:
        with Image.open(path) as image:
            return read_exif(image).get("orientation", 1) != 1
    except UNDECODABLE:
        return False


def need_one_camera(is_one: bool) -> None:
    """COLMAP is given one camera for all photographs. Raises InputError."""
    if not is_one:
        raise InputError("COLMAP is given one camera", "add --shared")


def names_for_colmap(labels: Mapping[str, str]) -> dict[str, str]:
    """Paths relative to the folder that holds all the photographs, with /, by the names of the results."""
    paths = {name: Path(label) for name, label in labels.items()}
    try:
        root = os.path.commonpath([path.parent for path in paths.values()])
        return {name: path.relative_to(root).as_posix() for name, path in paths.items()}
    except ValueError:  # some absolute, some not, or on several drives
        return dict(labels)


def names_for_nerfstudio(labels: Mapping[str, str], out: Path) -> dict[str, str]:
    """Paths relative to the folder of ``transforms.json``, with /, by the names of the results."""
    there = out.resolve()
    files = {name: Path(label).parent.resolve() / Path(label).name for name, label in labels.items()}
    try:
        return {name: Path(os.path.relpath(file, there)).as_posix() for name, file in files.items()}
    except ValueError:  # on several drives
        return {name: file.as_posix() for name, file in files.items()}


def find_poses(
    method: str,
    refs: Sequence[PhotoRef],
    cameras: Mapping[str, Intrinsics],
    folders: Mapping[str, Path],
    labels: Mapping[str, str],
    out: Path,
) -> dict[str, Any]:
    """Camera-to-world poses (4, 4) by the name of the photograph; in metres where depth was predicted.

    Raises:
        InputError: fewer than two photographs, too little overlap, or other needs of the method.
    """
    import numpy as np

    from vision3d.geometry.pose import poses_by_colmap, poses_of_views

    if method == "colmap":
        paths = [Path(labels[ref.name]) for ref in refs]
        if any(ref.path is None for ref in refs) or len({path.parent for path in paths}) != 1:
            raise InputError("COLMAP needs image files of one folder", "copy them together")
        need_one_camera(len({cameras[ref.name] for ref in refs}) == 1)
        found = poses_by_colmap(paths, cameras[refs[0].name], out / "colmap")
        by_file = {path.name: ref.name for path, ref in zip(paths, refs, strict=True)}
        return {by_file[file]: pose for file, pose in found.items()}
    images = [ref.load().rgb8 for ref in refs]
    files = [folders[ref.name] / "metric_depth.npy" for ref in refs]
    depths = [np.load(file, allow_pickle=False) if file.is_file() else None for file in files]
    views = poses_of_views(images, [cameras[ref.name] for ref in refs], depths)
    unit = "metres" if views.metric else "units of the first two photographs' distance"
    say(f"poses of {len(refs)} photographs in {unit}, {views.reprojection:.2f} px off on average")
    return {ref.name: pose for ref, pose in zip(refs, views.poses, strict=True)}
