"""SD+DINO: semantic correspondence from Stable Diffusion's and DINO's features, fused without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision3d.pipelines.sd_dino.pipeline import SDDino

_PLACES = {"SDDino": "pipeline"}

__all__ = ["SDDino"]


def __getattr__(name: str) -> Any:
    """Imports torch only when the pipeline is asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
