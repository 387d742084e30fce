"""What decides a StableNormal result besides the photograph, known before any network is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from vision3d.errors import InputError, check_seed

if TYPE_CHECKING:
    from vision3d.prediction import Provenance

Mode = Literal["object", "indoor", "outdoor"]


@dataclass(frozen=True)
class NormalOptions:
    """Settings of one run; None takes the weights' own value.

    Attributes:
        turbo: one step only; otherwise refined, where the weights have a refinement.
        steps: network calls of the refinement (published: 10 in the prompted line, which takes at least 2; 2 in the
            prompt-free one).
        t_start: timestep of the first stage (published: 401, turbo 0).
        prompt: text of the first stage.
        refine_prompt: text of the refinement.
        resolution: longest side, in multiples of 64, to which a photograph is brought before anything else, as the
            published predictor does (1024); 0 leaves it alone.
        processing_resolution: longest side at which the networks see it (published: 768); 0 for the size above.
        match_input: result at the photograph's size; otherwise at the networks'.
        mode: which pixels count without a mask: ``object`` (matting model), ``outdoor`` (vegetation and sky left
            out, segmentation model), ``indoor`` (all).
        semantic: whether DINO features guide the refinement.
        conditioning_scale: of the image branches and the semantic branch.
        ensemble: predictions from different noise that are averaged; more than 1 gives an uncertainty.
        tile: side in pixels of the tiles that larger photographs are processed in, with one view of the whole to
            fit them to.
        stabilise: for frames of a video, how much of the previous frame's latent is kept where it fits, 0 to 1.
        seed: of the noise. Each photograph draws its own, so results do not depend on the batch.
        mask, matting: what a person's mask files and models are, in provenance.
        dtype: floating type of the computation.
    """

    turbo: bool = False
    steps: int | None = None
    t_start: int | None = None
    prompt: str | None = None
    refine_prompt: str | None = None
    resolution: int | None = None
    processing_resolution: int | None = None
    match_input: bool = True
    mode: Mode = "indoor"
    semantic: bool = True
    conditioning_scale: float = 1.0
    ensemble: int = 1
    tile: int | None = None
    stabilise: float = 0.0
    seed: int = 0
    mask: str | None = None
    matting: str | None = None
    dtype: str = "float32"

    def check(self) -> None:
        """Refuses values that cannot work.

        Raises:
            InputError: naming the value.
        """
        check_seed(self.seed)
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise InputError(f"steps {self.steps}", "give 1 to 1000")
        if self.steps is not None and self.turbo:
            raise InputError("steps with turbo, which takes one", "leave one of the two out")
        if self.t_start is not None and not 0 <= self.t_start < 1000:
            raise InputError(f"t_start {self.t_start}", "give 0 to 999")
        for name, least in (("resolution", 64), ("processing_resolution", 32)):
            value = getattr(self, name)
            if value is not None and value != 0 and value < least:
                raise InputError(f"{name} {value}", f"give at least {least} pixels, or 0 for none")
        if self.tile is not None and self.tile < 64:
            raise InputError(f"tile {self.tile}", "give at least 64 pixels")
        if self.ensemble < 1:
            raise InputError(f"ensemble {self.ensemble}", "give 1 or more")
        if not 0 <= self.stabilise < 1:
            raise InputError(f"stabilise {self.stabilise}", "give 0 (off) to below 1")
        if self.mode not in ("object", "indoor", "outdoor"):
            raise InputError(f"mode {self.mode!r}", "choose object, indoor or outdoor")

    def provenance(self, weights: str, weights_sha256: str | None) -> Provenance:
        """Where results of these settings and weights come from; its fingerprint names the work."""
        from vision3d.prediction import Provenance

        settings = asdict(self)
        seed = settings.pop("seed")
        return Provenance("StableNormal", weights, weights_sha256, settings, seed)
