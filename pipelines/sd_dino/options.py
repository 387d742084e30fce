"""What decides a result besides the two images, known before any network is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from vision3d.errors import InputError, WeightsError
from vision3d.io.files import atomic_write_json

if TYPE_CHECKING:
    from vision3d.prediction import Provenance

CONFIG = "sddino.json"
STRIDES = {"s5": 64, "s4": 32, "s3": 16, "s2": 8, "dift0": 32, "dift1": 16, "dift2": 8, "dift3": 8}
"""Image pixels per cell of Stable Diffusion's layers."""
Features = Literal["sd+dino", "sd", "dino", "dift", "clean", "clean+dino"]
Conditioning = Literal["auto", "empty", "text", "implicit"]
MetricName = Literal["auto", "l2", "cosine", "l1", "l2_norm", "l1_norm", "plus", "plus_norm"]
Projection = Literal["auto", "exact", "lowrank", "dataset", "none"]


@dataclass(frozen=True)
class SDDinoConfig:
    """Sizes and places of one set of weights; the defaults are the published ones (SD 1.5 and DINOv2 ViT-B/14).

    Attributes:
        sd_size: side of the canvas for Stable Diffusion, a multiple of 64.
        tile: side of the tiles it is cut into; None for one pass.
        timestep: of the noise; negative for none.
        noises: draws of the noise whose features are averaged.
        taps: layers, any of s5, s4, s3, s2, and dift0 to dift3, where a level of the decoder ends.
        dims: directions kept of each layer, by name.
        layer_weights: of each layer, by name.
        dino_size: side of the canvas for DINO.
        dino_layer: block whose tokens are taken.
        dino_facet: token, query, key or value.
        dino_stride: pixels between tokens; None for the patch.
        dino_norm: apply DINO's final norm.
        dino_dims: directions kept of DINO's tokens in a projection common to the two images, as of the layers of Stable
            Diffusion; None keeps the tokens whole, as the published settings do.
        log_bins: describe a cell with its surroundings (17 times the channels).
        sd_weight, dino_weight: of the two halves.
        edge: fill the canvases' padding with border pixels instead of black.
        text_layer: of the text tower: last, penultimate, or auto for the one that Stable Diffusion was trained with
            (2.x the penultimate, else the last).
    """

    sd_size: int = 960
    tile: int | None = 512
    timestep: int = 100
    noises: int = 1
    taps: tuple[str, ...] = ("s5", "s4", "s3")
    dims: Mapping[str, int] = field(default_factory=lambda: {"s5": 256, "s4": 256, "s3": 256, "s2": 256})
    layer_weights: Mapping[str, float] = field(default_factory=dict)
    dino_size: int = 840
    dino_layer: int = 11
    dino_facet: str = "token"
    dino_stride: int | None = None
    dino_norm: bool = False
    dino_dims: int | None = None
    log_bins: bool = False
    sd_weight: float = 1.0
    dino_weight: float = 1.0
    edge: bool = False
    text_layer: str = "auto"

    def check(self) -> None:
        """Refuses values that cannot work.

        Raises:
            InputError: naming the value.
        """
        if self.sd_size < 64 or self.sd_size % 64:
            raise InputError(f"canvas of {self.sd_size} pixels for Stable Diffusion", "use a multiple of 64")
        if self.tile is not None and (self.tile < 64 or self.tile % 64):
            raise InputError(f"tile {self.tile}", "use a multiple of 64, 512 as published, or none")
        if not self.taps or set(self.taps) - set(STRIDES):
            raise InputError(f"layers {list(self.taps)}", f"choose from {', '.join(STRIDES)}")
        if not -1 <= self.timestep < 1000:
            raise InputError(f"timestep {self.timestep}", "use -1 (no noise) to 999")
        if self.noises < 1:
            raise InputError(f"{self.noises} draws of the noise", "use 1 or more")
        if self.dino_facet not in ("token", "query", "key", "value"):
            raise InputError(f"facet {self.dino_facet!r}", "choose token, query, key or value")
        if self.text_layer not in ("auto", "last", "penultimate"):
            raise InputError(f"text layer {self.text_layer!r}", "choose auto, last or penultimate")
        if self.dino_size < 16 or (self.dino_stride is not None and self.dino_stride < 1):
            raise InputError(f"DINO canvas {self.dino_size}, stride {self.dino_stride}", "use positive sizes")
        if any(d < 1 for d in self.dims.values()) or (self.dino_dims is not None and self.dino_dims < 1):
            raise InputError(f"dimensions {dict(self.dims)}", "keep at least one direction of a layer")

    @classmethod
    def for_dino(cls, version: int, depth: int, *, alone: bool = False) -> SDDinoConfig:
        """The published settings for a DINO network: v2 gives tokens of a late block, v1 keys of block 9.

        Args:
            version: 1 or 2.
            depth: number of blocks.
            alone: DINO is used without Stable Diffusion.
        """
        if version == 2:
            return cls(dino_layer={24: 23, 40: 39}.get(depth, depth - 1))
        size, stride = (224, 4) if alone else (480, 8)
        return cls(dino_size=size, dino_stride=stride, dino_layer=min(9, depth - 1), dino_facet="key")

    def reading(self, features: Features) -> SDDinoConfig:
        """The settings by which features of another kind are read.

        ``dift``: the end of the decoder's second level at step 261, mean over eight noises, in one pass over a canvas
        of at most 768 pixels (Tang et al., "Emergent Correspondence from Image Diffusion", 2023). ``clean``: no noise,
        as a UNet wants it that was tuned for that (Stracke et al., "CleanDIFT", 2024).
        """
        if features == "dift":
            size = min(self.sd_size, 768)
            return replace(self, taps=("dift1",), timestep=261, noises=8, tile=None, sd_size=size)
        return replace(self, timestep=-1) if features in ("clean", "clean+dino") else self

    def changed(self, **values: Any) -> SDDinoConfig:
        """A copy with those values that are not None."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "dims": dict(self.dims), "layer_weights": dict(self.layer_weights)}

    def save(self, folder: Path, **more: Any) -> None:
        """Writes ``sddino.json``; ``more`` names the folders of the networks."""
        atomic_write_json(folder / CONFIG, {**more, **self.to_dict()})

    @classmethod
    def read(cls, folder: Path) -> tuple[SDDinoConfig, dict[str, str]]:
        """Settings of a folder, and where in it (or relative to it) its networks are.

        Raises:
            WeightsError: no or a damaged ``sddino.json``.
        """
        file = folder / CONFIG
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            known = {f.name for f in fields(cls)}
            values: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in content.items() if k in known
            }
            config = cls(**values)
            config.check()
        except FileNotFoundError:
            raise WeightsError(f"{folder}: no {CONFIG} in this folder", "give an SD+DINO folder") from None
        except (ValueError, TypeError, InputError) as error:
            raise WeightsError(f"{file}: damaged settings ({error})", "get it again") from error
        return config, {k: str(v) for k, v in content.items() if k not in known}


@dataclass(frozen=True)
class MatchOptions:
    """Settings of one run.

    Attributes:
        features: of both networks or of one; ``dift``, ``clean`` and ``clean+dino`` read Stable Diffusion in other
            ways, see :meth:`SDDinoConfig.reading`.
        conditioning: of Stable Diffusion: ``empty`` prompt, ``text``, ``implicit`` captioner; ``auto`` takes the text
            if there is one, else the captioner if its weights were given, else the empty prompt.
        prompt: for ``text``.
        metric: how descriptors are compared; ``auto`` is l2 for both networks and cosine for one.
        projection: of the layers: ``exact`` PCA of the pair, ``lowrank`` (the published randomised one), one basis for
            the whole ``dataset``, ``none``; ``auto`` is exact, but none for ``dift``, as published.
        seed: of the randomised projection.
        subcell: places between cells instead of at their middles.
        padding: let points match into the canvas' padding, as published.
        flip: try the first image's mirror image, too, and keep what fits the second one better, for things that face
            different ways (after Zhang et al., "Telling Left from Right", 2024). Points then go to what looks like
            them: of two animals in profile, left legs to right ones.
        weigh_after: weigh the layers after the norm and the halves not at all, as the published evaluation on TSS does.
        dense: also flow both ways.
        max_matches: chosen matches when no points are asked for.
        min_confidence: of chosen matches.
        descriptors: keep the descriptors in half precision with the matches, for looking at similarities later.
    """

    features: Features = "sd+dino"
    conditioning: Conditioning = "auto"
    prompt: str | None = None
    metric: MetricName = "auto"
    projection: Projection = "auto"
    seed: int = 0
    subcell: bool = True
    padding: bool = False
    flip: bool = False
    weigh_after: bool = False
    dense: bool = False
    max_matches: int = 500
    min_confidence: float = 0.0
    descriptors: bool = False

    def check(self) -> None:
        """Refuses values that cannot work.

        Raises:
            InputError: naming the value.
        """
        for name, kind in (
            ("features", Features),
            ("conditioning", Conditioning),
            ("metric", MetricName),
            ("projection", Projection),
        ):
            value = getattr(self, name)
            if value not in get_args(kind):
                raise InputError(f"{name} {value!r}", f"choose one of {', '.join(get_args(kind))}")
        if self.conditioning == "text" and self.prompt is None:
            raise InputError("conditioning by text without a text", "give --prompt")
        if self.max_matches < 1:
            raise InputError(f"max_matches {self.max_matches}", "give 1 or more")
        if not 0 <= self.min_confidence <= 1:
            raise InputError(f"min_confidence {self.min_confidence}", "give a number from 0 to 1")

    @property
    def uses_sd(self) -> bool:
        """Whether Stable Diffusion is read."""
        return self.features != "dino"

    @property
    def uses_dino(self) -> bool:
        """Whether DINO is read."""
        return self.features in ("sd+dino", "dino", "clean+dino")

    @property
    def resolved_metric(self) -> str:
        """The metric that ``auto`` stands for."""
        return self.metric if self.metric != "auto" else "l2" if self.uses_sd and self.uses_dino else "cosine"

    @property
    def resolved_projection(self) -> str:
        """The projection that ``auto`` stands for."""
        return (
            self.projection if self.projection != "auto" else "none" if self.features == "dift" else "exact"
        )

    def provenance(
        self, weights: str, weights_sha256: str | None, config: SDDinoConfig | None = None, **more: Any
    ) -> Provenance:
        """Where results of these settings and weights come from; its fingerprint names the work."""
        from vision3d.prediction import Provenance

        settings = {**asdict(self), **more}
        seed = settings.pop("seed")
        seed = seed if self.projection == "lowrank" else None
        if config is not None:
            settings["config"] = config.reading(self.features).to_dict()
        return Provenance("SD+DINO", weights, weights_sha256, settings, seed)
