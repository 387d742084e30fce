"""``vision3d depth``: photographs and videos to affine-invariant inverse depth with PrimeDepth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vision3d.engines import EngineName, engine_of
from vision3d.runs import Process, RunSummary, check_run, photo_refs, run_folder

if TYPE_CHECKING:
    from vision3d.io.images import Photo
    from vision3d.pipelines.primedepth.ensemble import SecondOpinion
    from vision3d.pipelines.primedepth.options import DepthOptions
    from vision3d.pipelines.primedepth.pipeline import PrimeDepth
    from vision3d.prediction import Prediction


def depth(
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")],
    out: Path,
    weights: str | None = None,
    prompt: str = "",
    max_size: int | None = None,
    formats: tuple[Literal["exr", "npz", "obj"], ...] = (),
    segmentation: bool = False,
    ensemble: str | None = None,
    seed: int = 0,
    deterministic: bool = True,
    batch_size: int = 1,
    tile: int | None = None,
    device: str = "auto",
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto",
    memory: str = "auto",
    text_encoder: str | None = None,
    engine: EngineName = "local",
    recursive: bool = False,
    overwrite: bool = False,
) -> RunSummary:
    """Estimate the depth of photographs and videos, up to an unknown scale and shift (PrimeDepth).

    For each input, OUT/NAME/ gets depth.npy (float32, inverse depth: near is large), depth.png (16 bits),
    preview.png, points.ply, mesh.glb and result.json, which says what everything means. Inputs whose results
    are complete and right are skipped; a bad file does not stop the others.

    Args:
        inputs: photographs, folders, patterns such as 'photos/*.jpg', or videos.
        out: output folder.
        weights: "mini" (the embedded ones), a pulled name, a checkpoint file or a folder; by default the
            official ones if they were pulled, else the embedded ones.
        prompt: caption of the photographs; empty is what the method was tuned for.
        max_size: longest side in pixels at which a photograph is processed, by default the weights' own (1024
            for the published ones); the result has the input's size.
        formats: further files to write.
        segmentation: also predict the 150 classes of ADE20K.
        ensemble: average with a second estimator: depth-anything-v2-small, -base, -large, or a folder.
        seed: of the noise.
        deterministic: encode to the mean instead of a sample.
        batch_size: photographs of one size that are processed together.
        tile: side in pixels of the tiles that larger photographs are processed in.
        device: auto, cpu, cuda, cuda:1 or mps.
        dtype: precision; auto is 16 bits on CUDA, else fp32.
        memory: budget such as 6.5G; what does not fit at once is loaded in turn, batches are split and large
            images are tiled. Without one, that happens when memory runs out.
        text_encoder: folder, file or pulled name of an OpenCLIP ViT-H/14 text tower, for a checkpoint that has none;
            by default the pulled one.
        engine: local works in this process, ray in processes of the Ray cluster at RAY_ADDRESS, else of this machine.
        recursive: look into nested folders.
        overwrite: compute again what is there.
    """
    from vision3d.backbone.loading import fingerprint
    from vision3d.device import dtype_name
    from vision3d.pipelines.primedepth.checkpoint import tower_apart
    from vision3d.pipelines.primedepth.ensemble import locate
    from vision3d.pipelines.primedepth.options import DepthOptions
    from vision3d.weights import resolve

    total = check_run(inputs, out, recursive=recursive, batch_size=batch_size, memory=memory)
    options = DepthOptions(
        prompt=prompt,
        max_size=max_size,
        seed=seed,
        deterministic=deterministic,
        segmentation=segmentation,
        second_opinion=None if ensemble is None else Path(ensemble).name,
        tile=tile,
        dtype=dtype_name(dtype, device),
        second_opinion_sha256=None if ensemble is None else fingerprint(locate(ensemble)),
    )
    options.check()
    # What the results will say of their origin is known before any network is loaded, so that a run with
    # nothing left to do loads none; the weights are only hashed, once for each version of the file.
    path, name = resolve("primedepth", weights)
    tower = tower_apart(path, text_encoder)
    options = replace(options, text_encoder_sha256=None if tower is None else fingerprint(tower))
    provenance = options.provenance(name, fingerprint(path))
    return run_folder(
        lambda failed: photo_refs(list(inputs), recursive=recursive, failed=failed),
        Loader(weights, options, device, memory, ensemble, text_encoder),
        out,
        kind="depth",
        fingerprint=provenance.fingerprint,
        formats=formats,
        batch_size=batch_size,
        engine=engine_of(engine),
        overwrite=overwrite,
        total=total,
        description="depth",
    )


@dataclass(frozen=True)
class Loader:
    """Makes the loaded method; plain data, so that another process can make it, too.

    Attributes:
        weights: as the verb takes them.
        options: settings of the run.
        device: as the verb takes it.
        memory: as the verb takes it.
        ensemble: as the verb takes it.
        text_encoder: as the verb takes it.
    """

    weights: str | None
    options: DepthOptions
    device: str
    memory: str
    ensemble: str | None = None
    text_encoder: str | None = None

    def __call__(self) -> Process:
        """The method, its networks loaded."""
        from vision3d.pipelines.primedepth.ensemble import SecondOpinion
        from vision3d.pipelines.primedepth.pipeline import PrimeDepth

        others: dict[str, Any] = {} if self.text_encoder is None else {"text_encoder": self.text_encoder}
        pipeline = PrimeDepth.from_pretrained(
            self.weights, torch_dtype=self.options.dtype, device=self.device, memory=self.memory, **others
        )
        other = None
        if self.ensemble is not None:
            other = SecondOpinion.from_pretrained(self.ensemble, pipeline.device)

        return _Depth(pipeline, self.options, other)


@dataclass(frozen=True)
class _Depth:
    """The loaded method as :func:`vision3d.runs.run_folder` wants it."""

    pipeline: PrimeDepth
    options: DepthOptions
    second_opinion: SecondOpinion | None

    def __call__(self, photos: Sequence[Photo]) -> Sequence[Prediction]:
        return self.pipeline.predict(photos, self.options, second_opinion=self.second_opinion)

    def use_less_memory(self) -> str | None:
        """See :data:`vision3d.runs.Process`."""
        return self.pipeline.use_less_memory()
