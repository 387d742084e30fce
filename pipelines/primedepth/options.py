"""What decides a PrimeDepth result besides the photograph, known before any network is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from vision3d.errors import InputError, check_seed

if TYPE_CHECKING:
    from vision3d.prediction import Provenance


@dataclass(frozen=True)
class DepthOptions:
    """Settings of one run.

    Attributes:
        prompt: caption, the UNet's text input. Empty is what training dropped to.
        max_size: longest side that is processed; larger photographs are scaled down and the result up again. None
            takes the weights' own (1024 for the published ones).
        seed: of the noise. Each photograph draws its own, so results do not depend on the batch.
        deterministic: encode to the posterior mean; otherwise it is sampled.
        segmentation: also predict ADE20K classes.
        second_opinion: name of another affine-invariant depth that is averaged in.
        tile: side in pixels of the tiles that larger photographs are split into; None splits only when the memory
            budget asks for it.
        dtype: floating type of the computation.
        second_opinion_sha256: checksum of its weights.
        text_encoder_sha256: checksum of a text tower that is not the weights' own.
    """

    prompt: str = ""
    max_size: int | None = None
    seed: int = 0
    deterministic: bool = True
    segmentation: bool = False
    second_opinion: str | None = None
    tile: int | None = None
    dtype: str = "float32"
    second_opinion_sha256: str | None = None
    text_encoder_sha256: str | None = None

    def check(self) -> None:
        """Refuses values that cannot work.

        Raises:
            InputError: naming the value.
        """
        if self.max_size is not None and self.max_size < 16:
            raise InputError(f"max_size {self.max_size}", "give at least 16 pixels")
        check_seed(self.seed)
        if self.tile is not None and self.tile < 64:
            raise InputError(f"tile {self.tile}", "give at least 64 pixels")

    def provenance(self, weights: str, weights_sha256: str | None) -> Provenance:
        """Where results of these settings and weights come from; its fingerprint names the work."""
        from vision3d.prediction import Provenance

        settings = asdict(self)
        for name in ("second_opinion_sha256", "text_encoder_sha256"):
            if settings[name] is None:  # results from before these were told apart stay finished
                del settings[name]
        seed = settings.pop("seed")
        return Provenance("PrimeDepth", weights, weights_sha256, settings, seed)
