"""``vision3d depth``: photographs and videos to affine-invariant inverse depth with PrimeDepth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vision3d.errors import InputError
from vision3d.progress import say
from vision3d.runs import Process, RunSummary, check_inputs, photo_refs, run_folder

if TYPE_CHECKING:
    from vision3d.io.images import Photo
    from vision3d.prediction import Prediction, Provenance


def depth(
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")],
    out: Path,
    weights: str | None = None,
    prompt: str = "",
    max_size: int = 1024,
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
        max_size: longest side in pixels at which a photograph is processed; the result has the input's size.
        formats: further files to write.
        segmentation: also predict the 150 classes of ADE20K.
        ensemble: average with a second estimator: depth-anything-v2-small, -base, -large, or a folder.
        seed: of the noise.
        deterministic: encode to the mean instead of a sample.
        batch_size: photographs of one size that are processed together.
        tile: side in pixels of the tiles that larger photographs are processed in.
        device: auto, cpu, cuda, cuda:1 or mps.
        dtype: precision; auto is fp32 on CPUs and 16 bits on GPUs.
        memory: budget such as 6.5G; what does not fit at once is loaded in turn, and large images are tiled.
        recursive: look into nested folders.
        overwrite: compute again what is there.
    """
    from vision3d.device import parse_bytes
    from vision3d.io.files import check_writable

    total = check_inputs(inputs, recursive=recursive)
    check_writable(out)
    _check_numbers(max_size=(max_size, 16), batch_size=(batch_size, 1), tile=(tile, 64))
    if memory != "auto":
        parse_bytes(memory)
    provenance = planned_provenance(
        weights,
        prompt=prompt,
        max_size=max_size,
        deterministic=deterministic,
        segmentation=segmentation,
        tile=tile,
        ensemble=ensemble,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    return run_folder(
        lambda failed: photo_refs(list(inputs), recursive=recursive, failed=failed),
        _Loader(weights, device, dtype, memory, ensemble, batch_size, provenance),
        out,
        fingerprint=provenance.fingerprint,
        formats=formats,
        batch_size=batch_size,
        overwrite=overwrite,
        total=total,
        description="depth",
    )


def planned_provenance(
    weights: str | None,
    *,
    prompt: str,
    max_size: int,
    deterministic: bool,
    segmentation: bool,
    tile: int | None,
    ensemble: str | None,
    seed: int,
    device: str,
    dtype: str,
) -> Provenance:
    """Provenance of the results of a run before anything is loaded; the weights are only hashed.

    The memory budget is no part of it: a run that is continued with less memory keeps what it has.

    Raises:
        WeightsError: no such weights.
        InputError, ResourceError: no such device or dtype.
    """
    from vision3d.backbone.loading import fingerprint
    from vision3d.device import resolve_device, resolve_dtype
    from vision3d.prediction import Provenance
    from vision3d.weights import resolve

    place = resolve_device(device)
    path, name = resolve("primedepth", weights)
    settings = {
        "prompt": prompt,
        "max_size": max_size,
        "deterministic": deterministic,
        "segmentation": segmentation,
        "tile": tile,
        "second_opinion": ensemble,
        "dtype": str(resolve_dtype(dtype, place)).removeprefix("torch."),
    }
    if ensemble is not None and Path(ensemble).exists():
        settings |= {"second_opinion": Path(ensemble).name, "second_opinion_sha256": fingerprint(ensemble)}
    return Provenance(
        method="PrimeDepth",
        weights=name,
        weights_sha256=fingerprint(path),
        settings=settings,
        seed=seed,
    )


class _Loader:
    """Makes the loaded method; a class with plain fields, so that other processes can make it, too."""

    def __init__(
        self,
        weights: str | None,
        device: str,
        dtype: str,
        memory: str,
        ensemble: str | None,
        batch_size: int,
        provenance: Provenance,
    ) -> None:
        self.weights, self.device, self.dtype, self.memory = weights, device, dtype, memory
        self.ensemble, self.batch_size, self.provenance = ensemble, batch_size, provenance

    def __call__(self) -> Process:
        from vision3d.pipelines.primedepth import PrimeDepth
        from vision3d.pipelines.primedepth.ensemble import SecondOpinion

        say(f"weights: {self.provenance.weights}")
        pipeline = PrimeDepth.from_pretrained(
            self.weights, torch_dtype=self.dtype, device=self.device, memory=self.memory
        )
        other = None
        if self.ensemble is not None:
            other = SecondOpinion.from_pretrained(self.ensemble, pipeline.device)
        settings = self.provenance.settings
        options = {
            key: settings[key] for key in ("prompt", "max_size", "deterministic", "segmentation", "tile")
        }

        def process(photos: Sequence[Photo]) -> Sequence[Prediction]:
            results = list(
                pipeline.stream(
                    photos,
                    batch_size=self.batch_size,
                    seed=self.provenance.seed,
                    second_opinion=other,
                    **options,
                )
            )
            for result in results:
                # A later run recognises the result by exactly what was planned before the weights were
                # loaded.
                result.provenance = self.provenance
            return results

        return process


def _check_numbers(**values: tuple[int | None, int]) -> None:
    for name, (value, least) in values.items():
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}", f"give {least} or more")
