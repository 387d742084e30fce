"""The paper's own ensemble: the average with a second affine-invariant depth, pixel by pixel.

Depth Anything V2 is loaded through transformers. Both maps are brought to zero median and unit mean absolute
deviation, averaged, and returned in PrimeDepth's scale.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from vision3d.backbone.loading import fingerprint
from vision3d.errors import WeightsError
from vision3d.progress import no_library_bars

if TYPE_CHECKING:
    from vision3d.io.images import Photo

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def locate(name: str | Path) -> Path:
    """Folder of a depth estimator: of a name of the manifest (pulled, or in the hub's cache), a repository, or itself.

    Raises:
        WeightsError: it is not on this machine.
    """
    from vision3d import weights
    from vision3d.weights import registry
    from vision3d.weights.manifest import manifest

    known = str(name) in manifest() and registry.pulled(str(name)) is None
    return weights.locate(manifest()[str(name)].repo if known else name)[0]


def median_deviation(values: np.ndarray) -> tuple[float, float]:
    """Median and mean absolute deviation from it, the shift and scale of an affine-invariant map."""
    centre = float(np.median(values))
    return centre, max(float(np.abs(values - centre).mean()), 1e-8)


class SecondOpinion:
    """A depth estimator of the transformers library whose inverse depth is averaged with PrimeDepth's.

    Args:
        model: an ``AutoModelForDepthEstimation`` that predicts inverse depth.
        name: what it is called in provenance.
        side: shorter side at which it sees an image, rounded to multiples of 14.
        sha256: checksum of its weights.
    """

    def __init__(self, model: torch.nn.Module, name: str, side: int = 518, sha256: str | None = None) -> None:
        self.model, self.name, self.side, self.sha256 = model.eval(), name, side, sha256

    @classmethod
    def from_pretrained(cls, name: str | Path, device: torch.device | str = "cpu") -> SecondOpinion:
        """Loads by short name (``depth-anything-v2-small``), repository or folder; nothing is downloaded.

        Raises:
            WeightsError: it is not on this machine, or no depth estimator.
        """
        from transformers import AutoModelForDepthEstimation

        folder = locate(name)
        try:
            with no_library_bars():
                model = AutoModelForDepthEstimation.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{name}: no depth estimator ({' '.join(str(error).split())[:120]})",
                "give the folder of a Depth Anything V2 model",
            ) from error
        return cls(model.to(device), Path(name).name, sha256=fingerprint(folder))

    @torch.no_grad()
    def __call__(self, photo: Photo) -> np.ndarray:
        """Inverse depth ``(H, W)`` float32 at the photograph's size."""
        height, width = photo.size
        scale = self.side / min(height, width)
        size = [max(14, round(side * scale / 14) * 14) for side in (height, width)]
        x = F.interpolate(photo.to_tensor(), size=size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        parameter = next(self.model.parameters())
        depth = self.model(((x - mean) / std).to(parameter)).predicted_depth[:, None].float()
        return (
            F.interpolate(depth, size=(height, width), mode="bilinear", align_corners=False)[0, 0]
            .cpu()
            .numpy()
        )

    def average(self, depth: np.ndarray, photo: Photo) -> np.ndarray:
        """Mean of both standardised maps, in the scale of ``depth`` ``(H, W)``."""
        other = self(photo)
        centre, spread = median_deviation(depth)
        other_centre, other_spread = median_deviation(other)
        return (
            ((depth - centre) / spread + (other - other_centre) / other_spread) / 2 * spread + centre
        ).astype(np.float32)
