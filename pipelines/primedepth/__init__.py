"""PrimeDepth: affine-invariant depth from a Stable Diffusion preimage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision3d.pipelines.primedepth.checkpoint import PrimeDepthConfig, load_networks
    from vision3d.pipelines.primedepth.network import PredictionHead, PreimageRefiner
    from vision3d.pipelines.primedepth.pipeline import PrimeDepth

_PLACES = {
    "PrimeDepth": "pipeline",
    "PrimeDepthConfig": "checkpoint",
    "load_networks": "checkpoint",
    "PredictionHead": "network",
    "PreimageRefiner": "network",
}

__all__ = ["PredictionHead", "PreimageRefiner", "PrimeDepth", "PrimeDepthConfig", "load_networks"]


def __getattr__(name: str) -> Any:
    """Imports torch only when a network is asked for, so that the command line answers at once."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
