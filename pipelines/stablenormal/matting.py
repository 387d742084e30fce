"""Which pixels count, from an optional model: a foreground matte for objects, sky and vegetation for outdoor scenes.

Neither model is a dependency nor downloaded here. Objects: BiRefNet or any network of the transformers library that
maps a picture to one foreground logit. Outdoors: a Mask2Former trained on Cityscapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from vision3d.backbone.dino import normalise
from vision3d.errors import InputError, WeightsError
from vision3d.progress import no_library_bars

if TYPE_CHECKING:
    from vision3d.io.images import Photo

VEGETATION, SKY = 8, 10
"""Cityscapes train ids that are left out outdoors.

The published hub file leaves out 9 and 10 and calls 9 vegetation; by the data set's own table 9 is terrain.
"""
THRESHOLD = 128 / 255
"""A matte above this is foreground, as published."""


class Matting:
    """A model that says which pixels of a photograph count.

    Args:
        model: for ``object`` a network from ``(1, 3, H, W)`` ImageNet-normalised pixels to foreground logits (a
            tensor, or a list whose last entry is one); for ``outdoor`` one that returns ``class_queries_logits``
            and ``masks_queries_logits``.
        mode: ``object`` or ``outdoor``.
        name: what it is called in provenance.
        side: side of the square that it sees; outdoors the shorter side.
    """

    def __init__(self, model: Any, mode: str, name: str, side: int = 1024) -> None:
        if mode not in ("object", "outdoor"):
            raise InputError(f"a matting model for mode {mode!r}", "it serves object and outdoor")
        self.model, self.mode, self.name, self.side = model.eval(), mode, name, side

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        mode: str,
        device: torch.device | str = "cpu",
        *,
        trust_remote_code: bool = False,
    ) -> Matting:
        """Loads a model from a folder or the local hub cache; nothing is downloaded.

        Args:
            source: folder or repository: BiRefNet (needs ``trust_remote_code``), a Mask2Former of Cityscapes.
            mode: ``object`` or ``outdoor``.
            device: where to compute.
            trust_remote_code: run the Python files that come with the model.

        Raises:
            WeightsError: it is not on this machine, or cannot be loaded.
        """
        import transformers

        kind = {"object": "AutoModelForImageSegmentation", "outdoor": "AutoModelForUniversalSegmentation"}
        try:
            with no_library_bars():
                model = getattr(transformers, kind[mode]).from_pretrained(
                    str(source), local_files_only=True, trust_remote_code=trust_remote_code
                )
        except (OSError, ValueError, ImportError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WeightsError(
                f"{source}: no matting model for {mode} that can be loaded here ({first[:160]})",
                "download it first, give its folder, or give --mask files instead",
            ) from error
        return cls(model.to(device), mode, Path(source).name)

    @torch.no_grad()
    def __call__(self, photo: Photo) -> np.ndarray:
        """(H, W) bool at the photograph's size: what counts."""
        height, width = photo.size
        parameter = next(self.model.parameters())
        pixels = photo.to_tensor()
        if self.mode == "object":
            x = F.interpolate(pixels, size=(self.side, self.side), mode="bilinear", antialias=True)
            out = self.model(normalise(x).to(parameter))
            logits = out[-1] if isinstance(out, (list, tuple)) else getattr(out, "logits", out)
            matte = torch.sigmoid(logits.float()).reshape(1, 1, *logits.shape[-2:])
            full = F.interpolate(matte, size=(height, width), mode="bilinear", align_corners=False)[0, 0]
            return (full > THRESHOLD).cpu().numpy()
        scale = self.side / min(height, width)
        size = [max(32, round(side * scale / 32) * 32) for side in (height, width)]
        x = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
        out = self.model(pixel_values=normalise(x).to(parameter))
        classes = out.class_queries_logits.float().softmax(-1)[..., :-1]  # the last is "nothing"
        masks = F.interpolate(
            out.masks_queries_logits.float(), size=(height, width), mode="bilinear", align_corners=False
        ).sigmoid()
        labels = torch.einsum("bqc,bqhw->bchw", classes, masks).argmax(1)[0]
        return ((labels != VEGETATION) & (labels != SKY)).cpu().numpy()
