"""Which files a run's weights are and what results will say of their origin, known before a network is loaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vision3d.backbone.loading import fingerprint, read_config
from vision3d.errors import WeightsError

if TYPE_CHECKING:
    from vision3d.pipelines.stablenormal.options import NormalOptions
    from vision3d.prediction import Provenance
    from vision3d.results import NormalPrediction

CLASS_NAME = "StableNormal"
FIRST_STAGE, DINO_MODEL = "yoso-normal-v0-3", "dinov2-vitl14"


@dataclass(frozen=True)
class Origin:
    """Where the networks of a pipeline are.

    Attributes:
        folder: with ``model_index.json``: of both stages, of the refinement, or of the first stage.
        first_stage: the one-step folder of a released refinement, else None.
        dino: file or folder of the DINO network, where ``folder`` has none and one is needed.
        name: of all of these.
        sha256: of all of these.
    """

    folder: Path
    first_stage: Path | None
    dino: Path | None
    name: str
    sha256: str


def is_refinement(folder: Path) -> bool:
    """Whether a folder is a released refinement, which needs a first stage from elsewhere."""
    index = read_config(folder, "model_index.json")
    return index.get("_class_name") != CLASS_NAME and (folder / "dino_controlnet").is_dir()


def locate(
    source: str | Path | None = None,
    *,
    turbo: bool = False,
    first_stage: str | Path | None = None,
    dino: str | Path | None = None,
    semantic: bool = True,
) -> Origin:
    """Finds the folders that a pipeline is loaded from; arguments as in ``StableNormal.from_pretrained``.

    Raises:
        WeightsError: nothing there, not pulled, or no folder of this method.
    """
    from vision3d.weights import registry, resolve
    from vision3d.weights.manifest import manifest

    official = manifest().official("stablenormal-turbo")
    if turbo and source is None and official is not None and registry.pulled(official.name) is not None:
        folder, name = resolve("stablenormal-turbo")
    else:
        folder, name = resolve("stablenormal", source)
    if not folder.is_dir():
        raise WeightsError(
            f"{folder}: a file, where StableNormal's weights are folders", "give the folder around it"
        )
    first = None
    if is_refinement(folder):
        first, label = _first_stage(folder, first_stage)
        if turbo:
            folder, name, first = first, label, None
        else:
            name = f"{name} + {label}"
    prior = None
    guided = semantic and not turbo and (folder / "dino_controlnet").is_dir()
    if guided and (dino is not None or not (folder / "dino").is_dir()):
        prior, _ = resolve(DINO_MODEL, DINO_MODEL if dino is None else dino)
    digests = [fingerprint(path) for path in (folder, first, prior) if path is not None]
    combined = digests[0] if len(digests) == 1 else hashlib.sha256("|".join(digests).encode()).hexdigest()
    return Origin(folder, first, prior, name, combined)


def _first_stage(refinement: Path, given: str | Path | None) -> tuple[Path, str]:
    """Where the one-step weights of a refinement are: as given, in a folder beside it, or pulled."""
    from vision3d.weights import resolve

    if given is not None:
        return resolve("stablenormal-turbo", given)
    beside = refinement.parent / FIRST_STAGE
    if (beside / "model_index.json").is_file():
        return beside, beside.name
    return resolve("stablenormal-turbo", FIRST_STAGE)


def foreseen(
    options: NormalOptions,
    weights: str | Path | None = None,
    *,
    first_stage: str | Path | None = None,
    dino: str | Path | None = None,
    frame: str = "opencv",
    pose: Any = None,
) -> Provenance:
    """The provenance that results of a run will bear.

    Raises:
        WeightsError: as :func:`locate`.
    """
    origin = locate(
        weights, turbo=options.turbo, first_stage=first_stage, dino=dino, semantic=options.semantic
    )
    return _with_frame(options.provenance(origin.name, origin.sha256), frame, pose)


def placed(result: NormalPrediction, frame: str, pose: np.ndarray | None = None) -> NormalPrediction:
    """A result whose files are written in another frame, which its provenance says, too."""
    return replace(
        result,
        file_frame=frame,
        pose=pose,
        provenance=_with_frame(result.provenance, frame, None if pose is None else pose.tolist()),
    )


def _with_frame(provenance: Provenance, frame: str, pose: Any) -> Provenance:
    return replace(provenance, settings={**provenance.settings, "frame": frame, "pose": pose})
