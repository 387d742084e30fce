"""``vision3d scene``: photographs to metric, textured scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vision3d.engines import EngineName, engine_of
from vision3d.errors import InputError
from vision3d.runs import Process, RunSummary, check_run, photo_refs, run_folder

if TYPE_CHECKING:
    from vision3d.io.images import Photo
    from vision3d.pipelines.scene.options import SceneOptions
    from vision3d.prediction import Prediction, Provenance


def scene(
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")],
    out: Path,
    fast: bool = False,
    common_preprocessing: bool = False,
    canvas: int | None = None,
    domain: Literal["indoor", "outdoor", "object", "any"] | None = None,
    focal: float | None = None,
    use_exif: bool = False,
    sky: bool = True,
    seed: int = 0,
    fusion_size: int = 1024,
    depth_noise: float | None = None,
    normal_noise: float = 10.0,
    formats: tuple[Literal["obj", "exr", "npz"], ...] = (),
    primedepth: str | None = None,
    stablenormal: str | None = None,
    dmcalib: str | None = None,
    device: str = "auto",
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto",
    memory: str = "auto",
    engine: EngineName = "local",
    recursive: bool = False,
    overwrite: bool = False,
) -> RunSummary:
    """Turn photographs into metric, textured scenes (DM-Calib, PrimeDepth and StableNormal together).

    For each input, OUT/NAME/ gets scene.glb (textured, in metres), scene.ply, points.ply, camera.json,
    metric_depth.npy, relative_depth.npy, normals.npy and fused_depth.npy (the last two as 16-bit .png, too),
    preview.png, scene.json and result.json, which says what everything means. Inputs whose results are complete
    and right are skipped; a bad file does not stop the others.

    Args:
        inputs: photographs, folders, patterns such as 'photos/*.jpg', or videos.
        out: output folder.
        fast: few-step calibration, one-step normals and the common preprocessing.
        common_preprocessing: all tasks see the photograph on one square canvas, which is encoded once.
        canvas: side of that canvas in pixels, a multiple of 8; by default the calibration's own (768 published).
        domain: of the metric depth; by default that of the weights.
        focal: known focal length in pixels of the photograph.
        use_exif: take the focal length of the photograph's EXIF as known.
        sky: leave sky out of the surface.
        seed: of the noise.
        fusion_size: longest side in pixels at which depth and normals are fused.
        depth_noise: relative error of the metric depth that the fusion assumes; by default what its weights say.
        normal_noise: error of the normals in degrees that the fusion assumes.
        formats: further files to write.
        primedepth: weights of the relative depth: "mini", a pulled name, a file or a folder.
        stablenormal: weights of the normals.
        dmcalib: weights of the calibration and the metric depth.
        device: auto, cpu, cuda, cuda:1 or mps.
        dtype: precision; auto is 16 bits on CUDA, else fp32.
        memory: budget such as 6.5G for each method.
        engine: local works in this process, ray in processes of the Ray cluster at RAY_ADDRESS, else of this machine.
        recursive: look into nested folders.
        overwrite: compute again what is there.
    """
    from vision3d.device import dtype_name
    from vision3d.pipelines.scene.options import SceneOptions
    from vision3d.scene import FusionOptions

    total = check_run(inputs, out, recursive=recursive, memory=memory)
    if focal is not None and not focal > 0:
        raise InputError(f"focal length {focal}", "give a positive number of pixels")
    options = SceneOptions(
        fast=fast,
        common_preprocessing=common_preprocessing,
        canvas=canvas,
        domain=domain,
        seed=seed,
        sky=sky,
        focal=focal,
        use_exif=use_exif,
        fusion=FusionOptions(max_size=fusion_size, depth_noise=depth_noise, normal_noise=normal_noise),
        dtype=dtype_name(dtype, device),
    )
    options.check()
    weights = {"primedepth": primedepth, "stablenormal": stablenormal, "dmcalib": dmcalib}
    given = {name: value for name, value in weights.items() if value is not None}
    provenance = foreseen(options, given)
    return run_folder(
        lambda failed: photo_refs(list(inputs), recursive=recursive, failed=failed),
        Loader(options, given, device, memory),
        out,
        kind="scene",
        fingerprint=provenance.fingerprint,
        formats=formats,
        engine=engine_of(engine),
        overwrite=overwrite,
        total=total,
        description="scenes",
    )


def foreseen(options: SceneOptions, weights: dict[str, str]) -> Provenance:
    """The provenance that scenes of a run will bear, known before any network is loaded.

    Raises:
        WeightsError: weights that are not there.
    """
    from vision3d.backbone.loading import fingerprint
    from vision3d.pipelines.dmcalib.verb import WeightsChoice
    from vision3d.pipelines.stablenormal.origin import locate
    from vision3d.prediction import Provenance
    from vision3d.weights import resolve

    config, name, checksum = WeightsChoice(weights.get("dmcalib")).identify()
    path, depth_name = resolve("primedepth", weights.get("primedepth"))
    origin = locate(weights.get("stablenormal"), turbo=options.fast)
    camera = Provenance("DM-Calib", name, checksum)
    return options.completed(config).provenance(
        {
            "camera": camera,
            "metric depth": camera,
            "relative depth": Provenance("PrimeDepth", depth_name, fingerprint(path)),
            "normals": Provenance("StableNormal", origin.name, origin.sha256),
        }
    )


@dataclass(frozen=True)
class Loader:
    """Makes the loaded methods; plain data, so that another process can make them, too.

    Attributes:
        options: settings of the run.
        weights: by method, where not the default.
        device, memory: as the verb takes them.
    """

    options: SceneOptions
    weights: dict[str, str]
    device: str
    memory: str

    def __call__(self) -> Process:
        """The methods, their networks loaded."""
        from vision3d.pipelines.scene.pipeline import ScenePipeline

        pipeline = ScenePipeline.from_pretrained(
            dict(self.weights),
            turbo=self.options.fast,
            device=self.device,
            memory=self.memory,
            torch_dtype=self.options.dtype,
        )

        def process(photos: Sequence[Photo]) -> Sequence[Prediction]:
            return pipeline.predict(photos, self.options)

        return process
