"""What decides a scene besides the photograph and the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from vision3d.errors import InputError
from vision3d.geometry.measure import scale_sigma
from vision3d.scene import SCALE_NOISE, FusionOptions

if TYPE_CHECKING:
    from vision3d.pipelines.dmcalib.options import DMCalibConfig
    from vision3d.prediction import Provenance

Domain = Literal["indoor", "outdoor", "object", "any"]
FAST_STEPS = 4
"""Calibration steps of the fast profile, in place of the published 20 for each of three samples."""


@dataclass(frozen=True)
class SceneOptions:
    """Settings of one run; None takes what the weights are made for.

    Attributes:
        fast: few calibration steps, one-step normals, and the common preprocessing.
        common_preprocessing: all four tasks see the photograph on one square canvas with black borders, which each
            distinct autoencoder encodes once, instead of each as its authors prepared it.
        canvas: side of that canvas in pixels, a multiple of 8; None takes the calibration's own (768 as published).
        domain: of the metric depth.
        seed: of the noise of all tasks.
        sky: leave sky out: found by segmentation if the relative depth's weights can, and where depth ends. Domains
            "indoor" and "object" have none.
        focal: known focal length in pixels of the photograph.
        use_exif: take the focal length of the photograph's EXIF, where it has one, as known.
        fusion: of the maps.
        dtype: floating type of the computation.
    """

    fast: bool = False
    common_preprocessing: bool = False
    canvas: int | None = None
    domain: Domain | None = None
    seed: int = 0
    sky: bool = True
    focal: float | None = None
    use_exif: bool = False
    fusion: FusionOptions = field(default_factory=FusionOptions)
    dtype: str = "float32"

    @property
    def common(self) -> bool:
        """Whether all tasks see one canvas."""
        return self.fast or self.common_preprocessing

    @property
    def may_have_sky(self) -> bool:
        """Whether sky is looked for."""
        return self.sky and self.domain not in ("indoor", "object")

    def check(self) -> None:
        """Refuses values that cannot work.

        Raises:
            InputError: naming the value.
        """
        if self.canvas is not None and (self.canvas < 64 or self.canvas % 8):
            raise InputError(f"canvas of {self.canvas} pixels", "give a multiple of 8, at least 64")
        if self.canvas is not None and not self.common:
            raise InputError(
                "a canvas without the common preprocessing", "add --common-preprocessing or --fast"
            )
        if self.domain not in (None, "indoor", "outdoor", "object", "any"):
            raise InputError(f"domain {self.domain!r}", "use indoor, outdoor, object or any")
        self.fusion.check()

    def completed(self, config: DMCalibConfig) -> SceneOptions:
        """With everything that was left to the weights of the metric depth filled in."""
        given = self.fusion
        fusion = replace(
            given,
            depth_noise=config.depth_noise if given.depth_noise is None else given.depth_noise,
            scale_noise=scale_sigma(given.scale_noise, config.depth_noise, SCALE_NOISE),
        )
        return replace(self, fusion=fusion)

    def calibration(self, steps: int) -> dict[str, Any]:
        """Fields of DM-Calib's options, for weights that are made for this many steps."""
        fast = {"steps": min(FAST_STEPS, steps), "ensemble": 1} if self.fast else {}
        return {
            **fast,
            "seed": self.seed,
            "domain": self.domain,
            "focal": self.focal,
            "use_exif": self.use_exif,
            "dtype": self.dtype,
        }

    def normals(self) -> dict[str, Any]:
        """Fields of StableNormal's options. On the common canvas the photograph is not scaled again."""
        size = {"resolution": 0, "processing_resolution": 0} if self.common else {}
        return {"turbo": self.fast, "seed": self.seed, "dtype": self.dtype, **size}

    def depth(self, *, segmentation: bool, canvas: int | None = None) -> dict[str, Any]:
        """Fields of PrimeDepth's options."""
        return {"seed": self.seed, "segmentation": segmentation, "max_size": canvas, "dtype": self.dtype}

    def provenance(self, parts: dict[str, Provenance]) -> Provenance:
        """Where scenes of these settings and parts come from; its fingerprint names the work."""
        import hashlib

        from vision3d.prediction import Provenance

        settings = asdict(self)
        seed = settings.pop("seed")
        names = "; ".join(f"{name}: {part.method} {part.weights}" for name, part in parts.items())
        digests = "|".join(str(part.weights_sha256) for part in parts.values())
        return Provenance(
            "vision3d scene", names, hashlib.sha256(digests.encode()).hexdigest(), settings, seed
        )
