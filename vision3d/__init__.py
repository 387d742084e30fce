"""Stable Diffusion priors for geometry: one install, one API, one set of conventions.

``import vision3d`` costs nothing: every public name is loaded from its module when it is first used (PEP
562), so neither torch nor numpy is imported before a pipeline is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vision3d.backbone import Backbone
    from vision3d.camera import Intrinsics
    from vision3d.errors import InputError, OutputError, ResourceError, Vision3DError, WeightsError
    from vision3d.io.images import Photo, load_photo
    from vision3d.matches import Matches
    from vision3d.pipelines.dmcalib import DMCalib
    from vision3d.pipelines.primedepth import PrimeDepth
    from vision3d.pipelines.scene import Scene, ScenePipeline
    from vision3d.pipelines.sd_dino import SDDino
    from vision3d.pipelines.stablenormal import StableNormal
    from vision3d.results import CameraPrediction, DepthPrediction, NormalPrediction, Provenance
    from vision3d.scene import ScenePrediction
    from vision3d.synthetic import render_sample
    from vision3d.viewer import view

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "vision3d.backbone",
    "CameraPrediction": "vision3d.results",
    "DMCalib": "vision3d.pipelines.dmcalib",
    "DepthPrediction": "vision3d.results",
    "InputError": "vision3d.errors",
    "Intrinsics": "vision3d.camera",
    "Matches": "vision3d.matches",
    "NormalPrediction": "vision3d.results",
    "OutputError": "vision3d.errors",
    "Photo": "vision3d.io.images",
    "PrimeDepth": "vision3d.pipelines.primedepth",
    "Provenance": "vision3d.results",
    "ResourceError": "vision3d.errors",
    "SDDino": "vision3d.pipelines.sd_dino",
    "Scene": "vision3d.pipelines.scene",
    "ScenePipeline": "vision3d.pipelines.scene",
    "ScenePrediction": "vision3d.scene",
    "StableNormal": "vision3d.pipelines.stablenormal",
    "Vision3DError": "vision3d.errors",
    "WeightsError": "vision3d.errors",
    "load_photo": "vision3d.io.images",
    "render_sample": "vision3d.synthetic",
    "view": "vision3d.viewer",
}
"""Public name to the module that defines it."""

__all__ = [
    "Backbone",
    "CameraPrediction",
    "DMCalib",
    "DepthPrediction",
    "InputError",
    "Intrinsics",
    "Matches",
    "NormalPrediction",
    "OutputError",
    "Photo",
    "PrimeDepth",
    "Provenance",
    "ResourceError",
    "SDDino",
    "Scene",
    "ScenePipeline",
    "ScenePrediction",
    "StableNormal",
    "Vision3DError",
    "WeightsError",
    "__version__",
    "load_photo",
    "render_sample",
    "view",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'vision3d' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
