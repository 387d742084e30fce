"""Matching views of one scene: LoFTR of kornia and the matchers that transformers carries, with the same result.

Semantic matching finds the cat's ear on another cat; geometric matching finds the same screw in another photograph,
to a fraction of a pixel. For poses and reconstruction take this, for different things the other.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vision3d.device import resolve_device
from vision3d.errors import InputError, WeightsError
from vision3d.matches import Matches
from vision3d.progress import no_library_bars

if TYPE_CHECKING:
    from vision3d.io.photo import Photo, Source
    from vision3d.prediction import Provenance

HUB = {
    "lightglue": "ETH-CVG/lightglue_superpoint",
    "efficientloftr": "zju-community/efficientloftr",
    "superglue": "magic-leap-community/superglue_outdoor",
}
"""Default weights of the networks that transformers carries."""
LOFTR_FILE = "loftr_outdoor.ckpt"
LOFTR_URL = "http://cmp.felk.cvut.cz/~mishkdmy/models/loftr_outdoor.ckpt"


@dataclass(frozen=True)
class GeometricOptions:
    """Settings of one run.

    Attributes:
        network: loftr, lightglue, efficientloftr or superglue.
        max_matches: the most confident ones are kept.
        min_confidence: of the network's own score.
        dense: flow is not what these networks give; asking for it is refused.
        max_size: longest side in pixels at which images are matched.
    """

    network: str
    max_matches: int = 500
    min_confidence: float = 0.0
    dense: bool = False
    max_size: int = 840

    def check(self) -> None:
        """Refuses values that cannot work. Raises InputError."""
        if self.network != "loftr" and self.network not in HUB:
            raise InputError(f"network {self.network!r}", f"choose one of {', '.join(['loftr', *HUB])}")
        if self.dense:
            raise InputError("dense flow with --geometric", "leave one of the two out")

    def provenance(self, weights: str | None, weights_sha256: str | None = None, **more: Any) -> Provenance:
        """Where results come from."""
        from vision3d.prediction import Provenance

        self.check()
        settings = {**asdict(self), **more}
        return Provenance(
            f"geometric: {self.network}", weights or default_weights(self.network), weights_sha256, settings
        )


def default_weights(network: str) -> str:
    """What a network takes when no weights are named."""
    return LOFTR_FILE if network == "loftr" else HUB[network]


def weights_checksum(network: str, weights: str | Path | None) -> str | None:
    """SHA-256 of a network's file or folder; None for a name of the Hugging Face hub, and where nothing is there."""
    from vision3d.backbone.loading import fingerprint

    path = _loftr_file(weights) if network == "loftr" else Path(weights or HUB[network]).expanduser()
    return fingerprint(path) if path.exists() else None


class GeometricMatcher:
    """One matching network.

    Args:
        name: see :class:`GeometricOptions`.
        network: the loaded module.
        processor: transformers' image processor; None for LoFTR.
        weights: name of the weights, for results.
        device: where it runs.
        weights_sha256: checksum of the weights, for results.
    """

    def __init__(
        self,
        name: str,
        network: Any,
        processor: Any,
        weights: str,
        device: torch.device,
        weights_sha256: str | None = None,
    ) -> None:
        self.name, self.network, self.processor, self.device = name, network, processor, device
        self.weights, self.weights_sha256 = weights, weights_sha256

    @classmethod
    def from_pretrained(
        cls, name: str, weights: str | Path | None = None, *, device: str = "auto"
    ) -> GeometricMatcher:
        """Loads a network; nothing is downloaded.

        Args:
            name: loftr, lightglue, efficientloftr or superglue.
            weights: LoFTR: a checkpoint file, by default torch.hub's copy of ``loftr_outdoor.ckpt``; others: a folder,
                or a name whose files are in the Hugging Face cache.
            device: auto, cpu, cuda, ...

        Raises:
            InputError: no such network.
            WeightsError: its weights are not on this machine.
        """
        GeometricOptions(name).check()
        place = resolve_device(device)
        network: Any
        if name == "loftr":
            network = _load_loftr(_loftr_file(weights)).to(place)
            return cls(
                name, network, None, str(weights or LOFTR_FILE), place, weights_checksum(name, weights)
            )
        source = (
            str(Path(weights).expanduser()) if weights and Path(weights).expanduser().exists() else weights
        )
        source = str(source or HUB[name])
        try:
            from transformers import AutoImageProcessor, AutoModelForKeypointMatching

            processor = AutoImageProcessor.from_pretrained(source, local_files_only=True, use_fast=False)
            with no_library_bars():
                network = AutoModelForKeypointMatching.from_pretrained(source, local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            raise WeightsError(
                f"{source}: the weights of {name} are not on this machine",
                f"get them with `hf download {HUB[name]}`, or give their folder",
            ) from error
        return cls(name, network.to(place).eval(), processor, source, place, weights_checksum(name, weights))

    def match(
        self,
        first: Source | Photo,
        second: Source | Photo,
        *,
        masks: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
        options: GeometricOptions | None = None,
    ) -> Matches:
        """Points of one photograph in another of the same scene.

        Args:
            first, second: the images.
            masks: (H, W) of each; only points inside are kept.
            options: settings of the run.
        """
        from vision3d.io.photo import load_photo

        options = options or GeometricOptions(self.name)
        options.check()
        photos = load_photo(first), load_photo(second)
        with torch.no_grad():
            run = self._loftr if self.name == "loftr" else self._transformers
            a, b, scores = run(photos, options)
        keep = scores >= options.min_confidence
        for points, mask, photo in zip((a, b), masks, photos, strict=True):
            if mask is not None:
                if mask.shape != photo.size:
                    raise InputError(
                        f"a mask of shape {mask.shape} for an image of {photo.size}", "use one size"
                    )
                column, row = np.clip(points.astype(np.int64), 0, [photo.size[1] - 1, photo.size[0] - 1]).T
                keep &= np.asarray(mask, bool)[row, column]
        order = np.flatnonzero(keep)[np.argsort(-scores[keep], kind="stable")][: options.max_matches]
        count = len(order)
        return Matches(
            points_a=a[order],
            points_b=b[order],
            similarity=scores[order],
            confidence=np.clip(scores[order], 0, 1),
            mutual=np.ones(count, bool),  # all of them match both ways by construction
            cycle_error=np.full(count, np.nan),
            size_a=photos[0].size,
            size_b=photos[1].size,
            photo=photos[0],
            photo_b=photos[1],
            provenance=options.provenance(self.weights, self.weights_sha256),
        )

    def _loftr(
        self, photos: tuple[Photo, Photo], options: GeometricOptions
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import cv2

        tensors, scales = [], []
        for photo in photos:
            height, width = photo.size
            scale = min(1.0, options.max_size / max(height, width))
            size = tuple(max(16, round(side * scale / 8) * 8) for side in (width, height))
            grey = cv2.cvtColor(photo.rgb8, cv2.COLOR_RGB2GRAY)
            small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
            tensors.append(torch.from_numpy(small)[None, None].float().to(self.device) / 255)
            scales.append(np.array([width / size[0], height / size[1]]))
        found = self.network({"image0": tensors[0], "image1": tensors[1]})
        # the network's coordinates have pixel centres at +0.5 already
        points = [found[f"keypoints{i}"].double().cpu().numpy() * scales[i] for i in (0, 1)]
        return points[0], points[1], found["confidence"].float().cpu().numpy()

    def _transformers(
        self, photos: tuple[Photo, Photo], options: GeometricOptions
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs = self.processor([[p.to_pil() for p in photos]], return_tensors="pt").to(self.device)
        output = self.network(**inputs)
        # the processors round to whole pixels; the relative coordinates are better
        sizes = torch.tensor([[p.size[1], p.size[0]] for p in photos], dtype=torch.float64)
        relative = output.keypoints[0].double().cpu()
        # SuperPoint's are indices of pixels; LoFTR's have centres at +0.5 already
        if self.name != "efficientloftr":
            height, width = inputs["pixel_values"].shape[-2:]
            relative = relative + 0.5 / torch.tensor([width, height])
        places = relative * sizes[:, None]
        matches = output.matches[0].cpu()
        scores = output.matching_scores[0].float().cpu()
        if self.name == "efficientloftr":  # keypoints of both images stand in the order of the matches
            valid = (matches > -1) & (scores > 0)
            chosen = valid[0] & valid[1]
            return places[0][chosen].numpy(), places[1][chosen].numpy(), scores[0][chosen].numpy()
        valid = (matches[0] > -1) & (scores[0] > 0)
        return places[0][valid].numpy(), places[1][matches[0][valid]].numpy(), scores[0][valid].numpy()


def _loftr_file(weights: str | Path | None) -> Path:
    """LoFTR's checkpoint: the given one, else torch.hub's copy."""
    return Path(weights).expanduser() if weights else Path(torch.hub.get_dir()) / "checkpoints" / LOFTR_FILE


def _load_loftr(path: Path) -> Any:
    from kornia.feature import LoFTR

    from vision3d.backbone.loading import check_keys, open_checkpoint

    if not path.is_file():
        raise WeightsError(
            f"{path}: LoFTR's weights are not on this machine",
            f"download {LOFTR_URL} and name the file with --geometric-weights",
        )
    network = LoFTR(pretrained=None)
    tensors = {name.removeprefix("matcher."): value for name, value in open_checkpoint(path).items()}
    # the position table is computed, and files of some releases lack it
    named = {
        what: {n: tuple(v.shape) for n, v in group.items() if not n.startswith("pos_encoding")}
        for what, group in (("expected", network.state_dict()), ("given", tensors))
    }
    check_keys(named["expected"], named["given"], f"{path.name} as LoFTR")
    network.load_state_dict({n: tensors[n] for n in named["given"]}, strict=False)
    return network.eval().requires_grad_(False)
