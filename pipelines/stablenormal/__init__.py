"""StableNormal: surface normals of photographs and videos, in one step or refined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision3d.pipelines.stablenormal.network import ControlNetVAEModel, SemanticControlNet
    from vision3d.pipelines.stablenormal.pipeline import StableNormal

_PLACES = {
    "ControlNetVAEModel": "network",
    "SemanticControlNet": "network",
    "StableNormal": "pipeline",
}

__all__ = ["ControlNetVAEModel", "SemanticControlNet", "StableNormal"]


def __getattr__(name: str) -> Any:
    """Imports torch only when a network is asked for, so that the command line answers at once."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
