"""What decides a DM-Calib result besides the photograph, known before any network is loaded."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from vision3d.errors import InputError, WeightsError, check_seed
from vision3d.scene import DEPTH_NOISE

if TYPE_CHECKING:
    from vision3d.prediction import Provenance

Noise = Literal["gaussian", "zeros"]
Spacing = Literal["leading", "trailing"]
Domain = Literal["indoor", "outdoor", "object", "any"]
INDEX = "model_index.json"


@dataclass(frozen=True)
class DMCalibConfig:
    """What belongs to a set of weights; the defaults are the published ones.

    Attributes:
        max_size: side of the square canvas on which cameras are predicted.
        depth_max_size: longest side at which depth is predicted.
        steps: denoising steps.
        ensemble: noise samples; from zeros, 2 adds what the mirrored photograph says, for depth, too.
        noise: what denoising starts from; one-step weights start from zeros.
        ranges: depth in metres at the upper end of the decoder's output, by domain; ``any`` goes with the empty
            prompt, the others with "<domain> geometry".
        domain: taken unless another is asked for.
        scale_10: the depth decoder's output spans [-10, 10] instead of [-1, 1].
        depth_noise: relative error of the metric depth, for what combines it with other knowledge.
        base: folder, relative to that of the weights, of the autoencoder that they go with, where they come without
            their own and without that of Stable Diffusion 2.1.
    """

    max_size: int = 768
    depth_max_size: int = 768
    steps: int = 20
    ensemble: int = 3
    noise: Noise = "gaussian"
    ranges: dict[str, float] = field(
        default_factory=lambda: {"indoor": 50.0, "outdoor": 150.0, "object": 10.0, "any": 150.0}
    )
    domain: Domain = "outdoor"
    scale_10: bool = True
    depth_noise: float = DEPTH_NOISE
    base: str | None = None

    @classmethod
    def read(cls, folder: Path) -> DMCalibConfig:
        """That of a folder; the published one where the folder says nothing (as the released one).

        Raises:
            WeightsError: the folder holds another pipeline, or its index is damaged.
        """
        if not (folder / INDEX).is_file():
            return cls()
        try:
            index: dict[str, Any] = json.loads((folder / INDEX).read_text())
        except ValueError as error:
            raise WeightsError(f"{folder / INDEX}: damaged ({error})", "get the weights again") from error
        if index.get("_class_name") != "DMCalib":
            raise WeightsError(
                f"{folder}: this folder holds a {index.get('_class_name', 'pipeline of unknown class')}",
                "give a DM-Calib folder",
            )
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in index.items() if name in known})

    def range_of(self, domain: str) -> float:
        """Depth in metres at the end of a domain's range.

        Raises:
            InputError: these weights do not know the domain.
        """
        if domain not in self.ranges:
            raise InputError(
                f"domain {domain!r}", f"these weights know {', '.join(self.ranges)}; choose one of them"
            )
        return float(self.ranges[domain])


@dataclass(frozen=True)
class CalibrationOptions:
    """Settings of one run; None takes what the weights are made for.

    Attributes:
        steps: denoising steps; few (1 to 9) start from the end of the schedule.
        ensemble: noise samples, in one batch; per-sample cameras are combined by their median. From zeros all would be
            equal, so that a second one is predicted from the mirrored photograph, and there are no more; depth is
            then the mean of both, unless ``exact_size`` is off: the remainder would be lost on the other side.
        seed: of the noise, the same for every photograph.
        noise: ``gaussian``, or ``zeros`` for one-step weights.
        spacing: of the steps: ``leading`` as published, ``trailing`` for few steps; None decides by their number.
        mode: ``robust`` decoding of the Camera Image, or the published ``reference``.
        quantize: pass the predicted picture through 8 bits, as the published code does.
        square_pixels, centered: constraints on the camera.
        focal: known focal length in pixels of the photograph.
        max_size: side of the canvas in pixels, a multiple of 8.
        depth: also predict metric depth.
        domain: of the depth: ``indoor``, ``outdoor``, ``object`` or ``any``.
        scale_10: whether the depth decoder's output spans [-10, 10].
        exact_size: pad what is no multiple of 8 for the depth networks and crop after; otherwise the remainder is
            lost, as in the published code.
        use_exif: take the focal length of the photograph's EXIF, where it has one, as known.
        shared: one camera for all photographs of the run, the median of theirs.
        dtype: floating type of the computation.
    """

    steps: int | None = None
    ensemble: int | None = None
    seed: int = 666
    noise: Noise | None = None
    spacing: Spacing | None = None
    mode: Literal["robust", "reference"] = "robust"
    quantize: bool = False
    square_pixels: bool = False
    centered: bool = False
    focal: float | None = None
    max_size: int | None = None
    depth: bool = False
    domain: Domain | None = None
    scale_10: bool | None = None
    exact_size: bool = True
    use_exif: bool = False
    shared: bool = False
    dtype: str = "float32"

    @property
    def mirrors(self) -> bool:
        """Whether the mirrored photograph is asked, too; of completed options."""
        return self.noise == "zeros" and int(self.ensemble or 1) > 1

    def check(self) -> None:
        """Refuses values that cannot work.

        Raises:
            InputError: naming the value.
        """
        check_seed(self.seed)
        # Leading spacing starts one above the multiples of 1000 // steps, so that 1000 would leave the schedule.
        most = 1000 if self.spacing == "trailing" else 999
        if self.steps is not None and not 1 <= self.steps <= most:
            raise InputError(f"steps {self.steps}", f"give 1 to {most}")
        if self.ensemble is not None and self.ensemble < 1:
            raise InputError(f"ensemble {self.ensemble}", "give 1 or more samples")
        if self.max_size is not None and (self.max_size < 64 or self.max_size % 8):
            raise InputError(f"max_size {self.max_size}", "give a multiple of 8, at least 64")
        if self.focal is not None and not (math.isfinite(self.focal) and self.focal > 0):
            raise InputError(f"focal length {self.focal}", "give a positive number of pixels")
        if self.mode not in ("robust", "reference"):
            raise InputError(f"mode {self.mode!r}", "use 'robust' or 'reference'")
        constrained = self.square_pixels or self.centered or self.focal is not None or self.use_exif
        if self.mode == "reference" and constrained:
            raise InputError("constraints with mode 'reference'", "use mode 'robust'")
        choices = {
            "noise": get_args(Noise),
            "spacing": get_args(Spacing),
            "domain": get_args(Domain),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise InputError(f"{name} {value!r}", f"use one of {', '.join(allowed)}")

    def completed(self, config: DMCalibConfig) -> CalibrationOptions:
        """With everything that was left to the weights filled in."""
        steps = config.steps if self.steps is None else self.steps
        noise = config.noise if self.noise is None else self.noise
        ensemble = config.ensemble if self.ensemble is None else self.ensemble
        return replace(
            self,
            steps=steps,
            noise=noise,
            # Without noise there is the photograph and its mirror image.
            ensemble=min(ensemble, 2) if noise == "zeros" else ensemble,
            # With leading spacing, few steps would leave the end of the schedule, pure noise, out.
            spacing=self.spacing or ("leading" if steps >= 10 else "trailing"),
            max_size=config.max_size if self.max_size is None else self.max_size,
            domain=config.domain if self.domain is None else self.domain,
            scale_10=config.scale_10 if self.scale_10 is None else self.scale_10,
        )

    def provenance(self, weights: str, weights_sha256: str | None, **more: Any) -> Provenance:
        """Where results of these settings and weights come from; its fingerprint names the work."""
        from vision3d.prediction import Provenance

        settings = asdict(self)
        seed = settings.pop("seed")
        if not self.depth:
            for name in ("domain", "scale_10", "exact_size"):
                settings.pop(name)
        return Provenance("DM-Calib", weights, weights_sha256, {**settings, **more}, seed)
