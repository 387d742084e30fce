"""Normals of a video that do not flicker.

Two things are carried from frame to frame by optical flow, both ours: the noise, so that a surface keeps the noise
that it had; and the latent of the normal map, of which a share is kept where the frames match. Neither looks ahead,
so frames come out as they come in. Where nothing matches (a cut, something uncovered) a frame stands for itself, and
so does the first that a run sees: one that goes on with a video is not steadied by what an earlier run has written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vision3d.geometry.flow import Motion, motion, warp
from vision3d.io.video import is_video
from vision3d.pipelines.stablenormal import imaging

if TYPE_CHECKING:
    from vision3d.io.images import Photo
    from vision3d.pipelines.stablenormal.matting import Matting
    from vision3d.pipelines.stablenormal.options import NormalOptions
    from vision3d.pipelines.stablenormal.pipeline import Draws, StableNormal
    from vision3d.results import NormalPrediction

CUT = 0.15
"""Frames of which a smaller share matches belong to different shots."""


@dataclass
class _Shot:
    """What is remembered of the frame before."""

    source: str
    pixels: np.ndarray
    draws: Draws
    latent: Tensor


class Stabiliser:
    """Predicts the frames of videos one after the other.

    Args:
        pipeline: the loaded method.
        options: settings; ``stabilise`` is the share of the frame before that is kept where frames match.
    """

    def __init__(self, pipeline: StableNormal, options: NormalOptions) -> None:
        self.pipeline, self.options = pipeline, options
        self._before: _Shot | None = None

    def __call__(
        self,
        photo: Photo,
        mask: np.ndarray | None = None,
        matting: Matting | None = None,
        generator: torch.Generator | None = None,
    ) -> NormalPrediction:
        """The normals of the next frame; a photograph that is no frame, or of another video, starts anew.

        Arguments are as for :meth:`StableNormal.predict`.
        """
        pipeline = self.pipeline
        options = pipeline.recorded(self.options, matting)
        source = str(photo.path) if photo.path is not None and is_video(photo.path) else ""
        if not source or options.tile is not None or options.ensemble > 1:
            self._before = None
            return pipeline.predict([photo], options, masks=[mask], matting=matting, generator=generator)[0]
        plan = pipeline.plan(options)
        images = pipeline.prepare(photo, options)
        height, width = images.shape[-2:]
        pixels = np.ascontiguousarray((images[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
        grid = pipeline.latent_size((height, width), options)
        draws = pipeline.draw(grid, plan, generator or torch.Generator().manual_seed(options.seed))
        before, moved = self._before, None
        if before is not None and before.source == source and before.pixels.shape == pixels.shape:
            found = motion(before.pixels, pixels)
            if (found.match > 0.5).mean() > CUT:
                moved = found.resized(grid)
                draws = _carried(before.draws, draws, moved)
        x, canvas = imaging.preprocess(images.to(pipeline.device), pipeline.side(options))
        latent = pipeline.solve(x, draws.to(x.device, pipeline.unet.dtype), plan)
        if moved is not None:
            assert before is not None
            kept = torch.from_numpy(_warped(before.latent, moved)).to(latent)
            share = options.stabilise * torch.from_numpy(moved.match).to(latent)
            latent = latent + share * (kept - latent)
        self._before = _Shot(source, pixels, draws, latent.float().cpu())
        decoded = pipeline.decode(latent, refine=plan.refine)
        field = imaging.postprocess(decoded, canvas, one_step=not plan.refine, resize=options.match_input)
        outline = pipeline.mask_of(photo, mask, matting)
        return pipeline.result(photo, field, None, outline, options, plan)


def _warped(latent: Tensor, moved: Motion, *, nearest: bool = False) -> np.ndarray:
    """A latent ``(1, C, h, w)`` carried along."""
    grid = latent[0].permute(1, 2, 0).float().numpy()
    return warp(grid, moved.flow, nearest=nearest).transpose(2, 0, 1)[None]


def _carried(before: Draws, fresh: Draws, moved: Motion) -> Draws:
    """The noise of the frame before carried along; new where nothing matches.

    The nearest cell is taken, not a mixture: mixed noise would have less variance than the networks know.
    """
    fits = torch.from_numpy(moved.match > 0.3)

    def carry(old: Tensor, new: Tensor) -> Tensor:
        return torch.where(fits, torch.from_numpy(_warped(old, moved, nearest=True)), new)

    return type(fresh)(
        carry(before.start, fresh.start),
        tuple(carry(a, b) for a, b in zip(before.fresh, fresh.fresh, strict=True)),
    )
