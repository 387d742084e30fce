"""SD+DINO: correspondence between images of different things by the features of two networks.

Zhang, Herrmann, Hur, Cabrera, Jampani, Sun, Yang: "A Tale of Two Features: Stable Diffusion Complements DINO for
Zero-Shot Semantic Correspondence", NeurIPS 2023. Stable Diffusion's decoder holds a smooth layout, DINO's tokens are
sparse but sure; each half is brought to length 1, both are joined, and a cell's correspondence is its nearest
neighbour in the other image. Nothing is trained.

An image is encoded once, whatever it is matched with; what belongs to a pair (the common projection, the products)
is done for the pair.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from vision3d.backbone import loading
from vision3d.backbone.backbone import Backbone, fixed_noise
from vision3d.backbone.dino import Dino, log_bins
from vision3d.backbone.dino3 import Dinov3, load_any_dino
from vision3d.backbone.featurecache import FeatureCache, FeatureKey, image_sha256
from vision3d.backbone.sharing import has_file, identity
from vision3d.device import dtype_name
from vision3d.errors import InputError, ResourceError, WeightsError
from vision3d.io.files import atomic_write_json, staged_folder
from vision3d.io.photo import Photo, load_photo
from vision3d.matches import CellDescriptors, Matches, PairDescriptors
from vision3d.pipelines.sd_dino import flow as flows
from vision3d.pipelines.sd_dino import matching, swap
from vision3d.pipelines.sd_dino.canvas import Canvas, CellGrid, square
from vision3d.pipelines.sd_dino.captioner import ImplicitCaptioner, embed_images, load_clip_vision
from vision3d.pipelines.sd_dino.features import (
    STRIDES,
    average_tiles,
    check_size,
    cut_tiles,
    feature_size,
    noised,
    read_features,
    resize_map,
    sample_map,
    tile_boxes,
)
from vision3d.pipelines.sd_dino.fusion import fuse, prepare
from vision3d.pipelines.sd_dino.options import CONFIG, Features, MatchOptions, SDDinoConfig
from vision3d.pipelines.sd_dino.pca import DatasetPCA, by_grid, co_pca, project, stack_layers
from vision3d.progress import say

if TYPE_CHECKING:
    from vision3d.io.photo import Source
    from vision3d.pipelines.sd_dino.swap import SwapResult


Masks = tuple[np.ndarray | None, np.ndarray | None]


@dataclass(eq=False)
class ImageFeatures:
    """What one image costs once.

    Attributes:
        photo: the image.
        sd: taps on the Stable Diffusion canvas, each ``(C, h, w)``; empty if not asked for.
        dino: tokens on the DINO canvas ``(D, h, w)``, or None.
    """

    photo: Photo
    sd: dict[str, Tensor]
    dino: Tensor | None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.photo.size

    @property
    def nbytes(self) -> int:
        """Memory of the tensors."""
        tensors = [*self.sd.values(), *([] if self.dino is None else [self.dino])]
        return sum(t.numel() * t.element_size() for t in tensors)

    def half(self) -> ImageFeatures:
        """The same in half precision, for keeping many; what came out of the cache loses nothing."""
        return replace(
            self,
            sd={name: value.half() for name, value in self.sd.items()},
            dino=None if self.dino is None else self.dino.half(),
        )


@dataclass(eq=False)
class Descriptors:
    """Descriptors of the cells of one image, comparable with those that were made with them.

    Attributes:
        cells: ``(h * w, C)``.
        grid: where the cells lie on the image.
        inside: (h * w,) bool: cells that may be matched to.
        halves: channels of the first half where there are two of one width, else None.
        size: (height, width) of the image.
    """

    cells: Tensor
    grid: CellGrid
    inside: Tensor
    halves: int | None
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) cells."""
        return self.grid.shape

    @property
    def map(self) -> Tensor:
        """The descriptors as an image ``(C, h, w)``."""
        return self.cells.T.unflatten(1, self.shape)

    def kept(self, values: Tensor, allowed: Tensor, *, padding: bool) -> CellDescriptors:
        """Values ``(h * w, C)`` of the cells that the image covers (or of all), in half precision.

        Args:
            values: for each cell.
            allowed: (h * w,) bool: cells that may be matched to.
            padding: keep the cells on the padding, too.
        """
        rows, columns = (slice(0, n) for n in self.shape) if padding else self.grid.covering()
        part = values.unflatten(0, self.shape)[rows, columns]
        corner = np.array([columns.start, rows.start], float)
        canvas, step, offset = self.grid.canvas, self.grid.step, self.grid.offset
        first, second = canvas.to_image(np.stack([corner, corner + 1]) * step + offset)
        return CellDescriptors(
            part.flatten(0, 1).half().cpu().numpy(),
            (part.shape[0], part.shape[1]),
            (float(first[0]), float(first[1])),
            (float(second[0] - first[0]), float(second[1] - first[1])),
            allowed.unflatten(0, self.shape)[rows, columns].flatten().cpu().numpy(),
        )


class SDDino:
    """Semantic correspondence with Stable Diffusion and DINO.

    Args:
        backbone: the networks; Stable Diffusion may be absent for DINO alone, and the other way round.
        config: sizes and places.
        captioner, clip: weights of the implicit captioner and CLIP's image tower, both or none.
        cache: where features of images are kept; None keeps none.
        batch_size: tiles per pass.

    Raises:
        WeightsError: one of captioner and clip without the other, or of other widths than Stable Diffusion.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: SDDinoConfig | None = None,
        *,
        captioner: ImplicitCaptioner | None = None,
        clip: CLIPVisionModelWithProjection | None = None,
        cache: FeatureCache | None = None,
        batch_size: int = 1,
    ) -> None:
        self.backbone, self.config = backbone, config or SDDinoConfig()
        self.config.check()
        if (captioner is None) != (clip is None):
            raise WeightsError(
                "the implicit captioner needs its weights and CLIP's image tower",
                "give --captioner and --clip",
            )
        self.captioner, self.clip, self.cache, self.batch_size = captioner, clip, cache, batch_size
        self.weights_name = "custom"
        self.weights_sha256: str | None = None
        self._dtype: str | None = None
        self._contexts: dict[str, Tensor] = {}
        if captioner is not None and clip is not None:
            if backbone.sd is not None and backbone.sd.unet is not None:
                captioner.check_widths(clip, backbone.sd.unet)
            captioner.to(backbone.device)
            clip.to(backbone.device)

    # ------------------------------------------------------------------ loading

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *,
        sd: str | Path | None = None,
        unet: str | Path | None = None,
        dino: str | Path | None = None,
        captioner: str | Path | None = None,
        clip: str | Path | None = None,
        torch_dtype: torch.dtype | str = "auto",
        device: str = "auto",
        memory: str | int = "auto",
        cache: FeatureCache | bool = True,
        batch_size: int | None = None,
        features: Features = "sd+dino",
        **settings: Any,
    ) -> SDDino:
        """Loads the networks.

        Args:
            pretrained_model_name_or_path: a folder written by :meth:`save_pretrained`, a Stable Diffusion checkpoint or
                folder, ``"mini"``, or a pulled name; None takes the official weights if they were pulled, else the
                embedded ones.
            sd: Stable Diffusion, instead of what the first argument says; without that one, no weights but ``sd`` and
                ``dino`` are loaded.
            unet: UNet file or folder instead of Stable Diffusion's own, such as CleanDIFT's for ``clean`` features.
            dino: DINO file or folder (v1, v2; v3 from a folder of transformers), or a pulled name such as
                ``dinov2-vitb14`` or ``dino-vits8``, instead of what the first argument says.
            captioner: ODISE's checkpoint or its captioner tensors (CC BY-NC-SA 4.0), for implicit captions.
            clip: folder of CLIP ViT-L/14 at 336, for implicit captions.
            torch_dtype: floating type; fp32 on CPUs, 16 bits on CUDA.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
            memory: see :class:`vision3d.backbone.Backbone`.
            cache: where features are kept; True is the usual folder, False none.
            batch_size: tiles per pass; by default 1 on CPUs and 4 elsewhere.
            features: what will be asked for; with ``"dino"``, ``dino`` and no first argument, DINO is loaded alone.
            settings: fields of :class:`SDDinoConfig` that replace those of the weights.

        Raises:
            WeightsError: missing, damaged or foreign weights.
            InputError: settings that cannot work.
        """
        plan = LoadingPlan.of(
            pretrained_model_name_or_path, sd=sd, unet=unet, dino=dino, captioner=captioner, clip=clip,
            features=features, settings=settings,
        )  # fmt: skip
        backbone = Backbone.from_pretrained(
            plan.sd, plan.dino, unet=plan.unet, device=device, dtype=torch_dtype, memory=memory
        )
        caption = None if plan.captioner is None else ImplicitCaptioner.from_file(plan.captioner)
        tower = None if plan.clip is None else load_clip_vision(plan.clip)
        store = FeatureCache() if cache is True else None if cache is False else cache
        batch = batch_size or (1 if backbone.device.type == "cpu" else 4)
        pipeline = cls(backbone, plan.config, captioner=caption, clip=tower, cache=store, batch_size=batch)
        pipeline.weights_name, pipeline.weights_sha256 = plan.name, plan.sha256
        pipeline._dtype = dtype_name(torch_dtype, backbone.device)
        say(f"SD+DINO weights: {plan.name}")
        return pipeline

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder: ``unet/``, ``vae/`` and ``text_encoder/`` as diffusers', ``dino/``, ``sddino.json``.

        Networks that are not loaded are left out.

        Raises:
            OutputError: the disk is full or cannot be written; nothing is left behind.
        """
        with staged_folder(folder, last=CONFIG) as staging:
            self._save(staging)

    def _save(self, folder: Path) -> None:
        places: dict[str, str] = {}
        sd = self.backbone.sd
        if sd is not None:
            places["sd"] = "."
            for name, network in (("unet", sd.unet), ("vae", sd.vae)):
                if network is not None:
                    loading.load_weights(network)
                    network.save_pretrained(folder / name)
            schedule = {"_class_name": "DDIMScheduler", "prediction_type": sd.prediction_type}
            atomic_write_json(folder / "scheduler" / "scheduler_config.json", schedule)
            if (sd.source / "tokenizer").is_dir():
                shutil.copytree(sd.source / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
        text = self.backbone.text_encoder
        if text is not None:
            text.tower.save_pretrained(folder / "text_encoder")
        if self.backbone.dino_network is not None:
            loading.load_weights(self.backbone.dino_network)
            save_dino(self.backbone.dino_network, folder / "dino")
            places["dino"] = "dino"
        self.config.save(folder, **places)

    def to(self, device: str | torch.device) -> SDDino:
        """Moves every loaded network."""
        place = torch.device(device)
        self.backbone.device = place
        for network in (*self.backbone._networks(), self.captioner, self.clip):
            if network is not None:
                loading.load_weights(network, place)
        self._contexts.clear()
        return self

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return self.backbone.device

    # ------------------------------------------------------------------ one image

    def encode(
        self, image: Source | Photo, options: MatchOptions | None = None, *, mirrored: bool = False
    ) -> ImageFeatures:
        """The features of an image, from the cache if it was seen before.

        Args:
            image: path, Pillow image, array, tensor or Photo.
            options: which networks, and the conditioning.
            mirrored: show the networks the mirror image; each place still has its own features.

        Raises:
            InputError: not an image.
            ResourceError: a network that is needed was not loaded.
        """
        options = options or MatchOptions()
        photo = load_photo(image)
        taps = self._sd_taps(photo, options, mirrored) if options.uses_sd else {}
        tokens = self._dino_tokens(photo, mirrored) if options.uses_dino else None
        return ImageFeatures(photo, taps, tokens)

    def _sd_taps(self, photo: Photo, options: MatchOptions, mirrored: bool) -> dict[str, Tensor]:
        config = self.config.reading(options.features)
        sd = self.backbone.sd
        if sd is None or sd.unet is None or sd.vae is None:
            raise ResourceError("Stable Diffusion is not loaded", "give it, or match with --features dino")
        check_size(config.sd_size, config.sd_size, config.tile)
        condition, states, kind = self._condition(options)
        key = FeatureKey(
            image=photo.sha256,
            canvas=f"square {config.sd_size} lanczos {'edge' if config.edge else 'black'}, tile {config.tile}"
            f"{', mirrored' if mirrored else ''}",
            model=f"{identity(sd.unet)} {identity(sd.vae)}",
            taps=config.taps,
            timestep=config.timestep,
            condition=condition,
            noise=""
            if config.timestep < 0
            else f"fixed42{f' x{config.noises}' if config.noises > 1 else ''}",
            dtype=str(sd.unet.dtype),
        )

        def compute() -> Mapping[str, Tensor]:
            return self._compute_taps(photo, config, states, kind, mirrored)

        captioning = () if self.clip is None or kind == "empty" else (self.clip,)
        return self._cached(key, compute, (sd.unet, sd.vae, *captioning))

    def _cached(
        self, key: FeatureKey, compute: Callable[[], Mapping[str, Tensor]], networks: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Features from the cache, if all networks can be told by their files; else nothing is kept."""
        if self.cache is None or any(not has_file(network) for network in networks):
            return {name: value.float().cpu() for name, value in compute().items()}
        return self.cache.get_or_compute(key, compute)

    def _condition(self, options: MatchOptions) -> tuple[str, Tensor, str]:
        """What identifies the conditioning, its text states ``(1, 77, C)``, and its kind: empty, text or implicit.

        With a text the captioner's vector beside the time embedding stays, as published; with the empty prompt there is
        no captioner.
        """
        kind = options.conditioning
        if kind == "auto":
            kind = (
                "text"
                if options.prompt is not None
                else "implicit"
                if self.captioner is not None
                else "empty"
            )
        if kind == "implicit" and self.captioner is None:
            raise WeightsError(
                "implicit captions need the captioner's weights (CC BY-NC-SA 4.0)",
                "give --captioner and --clip, or use --conditioning empty",
            )
        states = self._text(options.prompt or "" if kind == "text" else "")
        parts = [kind, image_sha256(states)]
        if self.captioner is not None and self.clip is not None and kind != "empty":
            parts += [loading.tensor_checksum(self.captioner.state_dict()), identity(self.clip)]
        return hashlib.sha256("|".join(parts).encode()).hexdigest(), states, kind

    def _text(self, prompt: str) -> Tensor:
        if prompt not in self._contexts:
            self._contexts[prompt] = self.backbone.text(prompt, layer=self._text_layer)
        return self._contexts[prompt]

    @property
    def _text_layer(self) -> Any:
        """The text tower's layer that Stable Diffusion was trained with, or the configured one."""
        if self.config.text_layer != "auto":
            return self.config.text_layer
        sd = self.backbone.sd
        return "penultimate" if sd is not None and sd.family == "sd2" else "last"

    @torch.no_grad()
    def _compute_taps(
        self, photo: Photo, config: SDDinoConfig, states: Tensor, kind: str, mirrored: bool
    ) -> dict[str, Tensor]:
        """Four tiles: encode, noise, read; averaged where they overlap."""
        device = self.device
        canvas = _canvas(photo, config.sd_size, config.edge, mirrored)
        image = torch.from_numpy(canvas).to(device).permute(2, 0, 1).float() / 255
        boxes = tile_boxes(config.sd_size, config.sd_size, config.tile)
        tiles = cut_tiles(image, boxes)
        parts: dict[str, list[Tensor]] = {}
        latents = torch.cat([self.backbone.encode(part) for part in tiles.split(self.batch_size)])
        cells = (latents.shape[-2], latents.shape[-1])
        draws = range(config.noises if config.timestep >= 0 else 1)
        noises = [fixed_noise(cells, 42 + i, latents.shape[1]).to(latents) for i in draws]
        context, time_add = states.expand(len(tiles), -1, -1), None
        if self.captioner is not None and self.clip is not None and kind != "empty":
            embeddings = torch.cat([embed_images(self.clip, p) for p in tiles.split(self.batch_size)]).float()
            time_add = self.captioner.time_vector(embeddings)
            if kind == "implicit":
                context = self.captioner.context(embeddings, states.float())
        with self.backbone.running("unet") as unet:
            for rows in torch.arange(len(tiles)).split(self.batch_size):
                added = None if time_add is None else time_add[rows]
                drawn = []
                for noise in noises:
                    noisy, step = noised(latents[rows], noise, config.timestep)
                    states_of = context[rows].to(noisy)
                    drawn.append(read_features(unet, noisy, step, states_of, config.taps, time_add=added))
                for name in config.taps:
                    parts.setdefault(name, []).append(torch.stack([found[name] for found in drawn]).mean(0))
        size = config.sd_size
        return {
            name: _back(
                average_tiles(torch.cat(values), boxes, feature_size(size, size, name), STRIDES[name]),
                mirrored,
            )
            for name, values in parts.items()
        }

    def _dino_tokens(self, photo: Photo, mirrored: bool) -> Tensor:
        config, network = self.config, self.backbone.dino_network
        if network is None:
            raise ResourceError("DINO is not loaded", "give it, or match with --features sd")
        rest = (config.dino_size - network.config.patch) % (config.dino_stride or network.config.patch)
        if mirrored and rest:
            raise InputError(
                f"a mirror image where {rest} pixels of DINO's canvas are left over",
                "use another --dino-size",
            )
        key = FeatureKey(
            image=photo.sha256,
            canvas=f"square {config.dino_size} lanczos {'edge' if config.edge else 'black'}, "
            f"stride {config.dino_stride}{', mirrored' if mirrored else ''}",
            model=f"{identity(network)} {network.interpolation}",
            taps=(f"{config.dino_facet} {config.dino_layer}{' normed' if config.dino_norm else ''}",),
            dtype=str(network.dtype),
        )

        def compute() -> dict[str, Tensor]:
            canvas = _canvas(photo, config.dino_size, config.edge, mirrored)
            image = torch.from_numpy(canvas).permute(2, 0, 1)[None].float() / 255
            tokens = self.backbone.dino(
                image,
                layer=config.dino_layer,
                facet=config.dino_facet,  # type: ignore[arg-type]
                norm=config.dino_norm,
                stride=config.dino_stride,
            )
            return {"tokens": _back(tokens.map[0], mirrored)}

        return self._cached(key, compute, (network,))["tokens"]

    def grid(self, size: tuple[int, int], options: MatchOptions | None = None) -> CellGrid:
        """The cells by which an image (height, width) is compared: DINO's, or the finest layer's without DINO."""
        network, config = self.backbone.dino_network, self.config
        if network is not None:
            side, patch = config.dino_size, network.config.patch
            shape = network.grid_of(side, side, config.dino_stride)
            return CellGrid(Canvas(*size, side), shape, config.dino_stride or patch, patch / 2)
        config = config.reading((options or MatchOptions()).features)
        finest = by_grid(config.taps)[-1]
        side, step = config.sd_size, STRIDES[finest]
        return CellGrid(Canvas(*size, side), feature_size(side, side, finest), step, step / 2)

    # ------------------------------------------------------------------ two images

    @torch.no_grad()
    def describe(
        self, first: ImageFeatures, second: ImageFeatures, options: MatchOptions | None = None
    ) -> tuple[Descriptors, Descriptors]:
        """Comparable descriptors of two images: the common projection, weights, norms, fusion."""
        options = options or MatchOptions()
        options.check()
        projection: Any = options.resolved_projection
        if projection == "dataset":
            raise InputError("a projection for a data set needs its images", "use SDDino.common_basis")
        layers: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        if options.uses_sd:
            taps = [{n: f.sd[n].to(self.device).float() for n in by_grid(f.sd)} for f in (first, second)]
            if projection == "none":
                layers = taps[0], taps[1]
            else:
                dims = {name: self.config.dims.get(name, 256) for name in taps[0]}
                with torch.random.fork_rng(devices=[], enabled=projection == "lowrank"):
                    if projection == "lowrank":
                        torch.manual_seed(options.seed)
                    layers = co_pca(taps[0], taps[1], dims, projection)
        tokens = [self._tokens(image, options) for image in (first, second)]
        if self.config.dino_dims is not None and tokens[0] is not None and tokens[1] is not None:
            pair = co_pca({"": tokens[0]}, {"": tokens[1]}, {"": self.config.dino_dims})
            tokens = [image[""] for image in pair]
        return tuple(  # type: ignore[return-value]
            self._descriptors(image, layer, dino, options)
            for image, layer, dino in zip((first, second), layers, tokens, strict=True)
        )

    def _tokens(self, image: ImageFeatures, options: MatchOptions) -> Tensor | None:
        """DINO's part ``(C, h, w)`` of the descriptors, or None where it has none."""
        if not options.uses_dino or image.dino is None:
            return None
        tokens = image.dino.to(self.device).float()
        return log_bins(tokens[None])[0] if self.config.log_bins else tokens

    def common_basis(
        self, images: Iterable[ImageFeatures], options: MatchOptions | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """One basis per layer for many images; see :class:`vision3d.pipelines.sd_dino.pca.DatasetPCA`."""
        config = self.config.reading((options or MatchOptions()).features)
        sums = DatasetPCA({name: config.dims.get(name, 256) for name in by_grid(config.taps)})
        for image in images:
            sums.update(image.sd)
        return sums.fit()

    @torch.no_grad()
    def describe_in(
        self,
        image: ImageFeatures,
        bases: Mapping[str, tuple[Tensor, Tensor]],
        options: MatchOptions | None = None,
    ) -> Descriptors:
        """Descriptors of one image in a common basis, comparable with all others in it.

        Raises:
            InputError: DINO's tokens are to be projected, too, which is done for two images only.
        """
        options = options or MatchOptions()
        if self.config.dino_dims is not None:
            raise InputError("dino_dims with a projection for a data set", "leave one of the two out")
        layers = project({n: v.float() for n, v in image.sd.items()}, bases) if image.sd else {}
        layers = {n: v.to(self.device) for n, v in layers.items()}
        return self._descriptors(image, layers, self._tokens(image, options), options)

    def _descriptors(
        self,
        image: ImageFeatures,
        layers: Mapping[str, Tensor],
        tokens: Tensor | None,
        options: MatchOptions,
    ) -> Descriptors:
        config, grid = self.config, self.grid(image.size, options)
        sd = None
        dino = None if tokens is None else tokens.flatten(1).T
        lengths: list[int] = []
        weights: list[float] = []
        if options.uses_sd:
            stacked = stack_layers(layers)
            if grid.step * grid.shape[0] == grid.canvas.side:
                stacked = resize_map(stacked, grid.shape)
            else:  # overlapping patches: their middles do not divide the canvas evenly
                y, x = (torch.from_numpy(m) for m in grid.middles())
                stacked = sample_map(stacked, (y, x), grid.canvas.side)
            sd = stacked.flatten(1).T
            names = by_grid(layers)[::-1]  # channels run from the finest to the coarsest
            lengths = [layers[name].shape[0] for name in names]
            weights = [config.layer_weights.get(name, 1.0) for name in names]
        cells = fuse(
            sd,
            dino,
            lengths=lengths,
            layer_weights=weights,
            half_weights=(1.0, 1.0) if options.weigh_after else (config.sd_weight, config.dino_weight),
            weigh_after=options.weigh_after,
        )
        halves = sd.shape[1] if sd is not None and dino is not None and sd.shape == dino.shape else None
        inside = np.ones(len(cells), bool) if options.padding else grid.inside()
        return Descriptors(cells, grid, torch.from_numpy(inside).to(self.device), halves, image.size)

    def match(
        self,
        first: Source | Photo | ImageFeatures,
        second: Source | Photo | ImageFeatures,
        points: Any = None,
        *,
        masks: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
        options: MatchOptions | None = None,
        **settings: Any,
    ) -> Matches:
        """Correspondences from one image to another.

        Args:
            first, second: images, or what :meth:`encode` made of them.
            points: (N, 2) x, y in pixels of the first, centres at +0.5; None chooses the mutual nearest cells.
            masks: (H, W) of each image: only points inside are chosen, only places inside are matched.
            options: settings of the run.
            settings: fields of :class:`MatchOptions`, instead of ``options``.

        Raises:
            InputError: images, points, masks or settings that cannot be used.
        """
        options = options or MatchOptions(**settings)
        options.check()
        a, b = self._features(first, options), self._features(second, options)
        descriptors, mirrored = self.describe_posed(a, b, options, masks)
        return self.match_described(
            a.photo, b.photo, descriptors, points, masks=masks, options=options, mirrored=mirrored
        )

    __call__ = match

    def describe_posed(
        self,
        first: ImageFeatures,
        second: ImageFeatures,
        options: MatchOptions,
        masks: Masks = (None, None),
    ) -> tuple[tuple[Descriptors, Descriptors], bool]:
        """As :meth:`describe`, with ``flip`` of the better pose; and whether the first image is mirrored in it."""
        pairs = [self.describe(first, second, options)]
        if options.flip:
            other = self.encode(first.photo, options, mirrored=True)
            pairs.append(self.describe(other, second, options))
        return self.better_pose(pairs, masks, options)

    @torch.no_grad()
    def better_pose(
        self,
        pairs: Sequence[tuple[Descriptors, Descriptors]],
        masks: Masks = (None, None),
        options: MatchOptions | None = None,
    ) -> tuple[tuple[Descriptors, Descriptors], bool]:
        """Of the descriptors of two images as they are, and with the first one mirrored, the pair that fits better.

        The better one has the greater mean similarity, over the first object's cells, to their nearest cells in the
        second ("instance matching distance" of Telling Left from Right); without masks, over the whole image.

        Args:
            pairs: one pair, which is kept, or two.
            masks: (H, W) of the objects, as for :meth:`match`.
            options: settings of the run.

        Returns:
            The pair, and whether it is the second.
        """
        if len(pairs) == 1:
            return pairs[0], False
        metric: Any = (options or MatchOptions()).resolved_metric
        scores = []
        for a, b in pairs:
            here, there = (_cell_mask(d, m, self.device) for d, m in zip((a, b), masks, strict=True))
            best = matching.nearest_cells(
                a.cells[here], b.cells, b.shape, metric, halves=a.halves, second_mask=there
            )
            scores.append(float(best.cosine.mean()))
        return pairs[int(scores[1] > scores[0])], scores[1] > scores[0]

    def _features(self, image: Any, options: MatchOptions) -> ImageFeatures:
        return image if isinstance(image, ImageFeatures) else self.encode(image, options)

    @torch.no_grad()
    def match_described(
        self,
        first: Photo,
        second: Photo,
        descriptors: tuple[Descriptors, Descriptors],
        points: Any = None,
        *,
        masks: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
        options: MatchOptions | None = None,
        mirrored: bool = False,
    ) -> Matches:
        """As :meth:`match`, from descriptors; ``mirrored`` says of which kind those of the first image are."""
        options = options or MatchOptions()
        a, b = descriptors
        inside = tuple(_cell_mask(d, mask, self.device) for d, mask in zip(descriptors, masks, strict=True))
        metric: Any = options.resolved_metric
        provenance = options.provenance(
            self.weights_name, self.weights_sha256, self.config, dtype=self._dtype
        )
        common: dict[str, Any] = {
            "size_a": a.size,
            "size_b": b.size,
            "photo": first,
            "photo_b": second,
            "mirrored": mirrored,
            "provenance": provenance,
        }
        chosen: np.ndarray | None = None
        flow_ab = flow_ba = None
        if points is None or options.dense:
            there = matching.nearest_cells(
                a.cells,
                b.cells,
                b.shape,
                metric,
                halves=a.halves,
                first_mask=inside[0],
                second_mask=inside[1],
            )
            if points is None:
                chosen = _mutual_cells(there, a.shape, inside[0], options)
            if options.dense:
                flow_ab = self._flow(a, b, there.forward)
                flow_ba = self._flow(b, a, there.backward)
        found_here = None if chosen is None else a.grid.to_image(_middles(chosen, a.shape))
        asked = _checked_points(points, a.size) if found_here is None else found_here
        found: dict[str, Any] = self._transfer(a, b, asked, inside, metric, options)
        if options.descriptors:
            common["descriptors"] = _kept(descriptors, inside, options)
        return Matches(points_a=asked, flow_ab=flow_ab, flow_ba=flow_ba, **found, **common)

    def _transfer(
        self,
        a: Descriptors,
        b: Descriptors,
        points: np.ndarray,
        inside: Sequence[Tensor],
        metric: Any,
        options: MatchOptions,
    ) -> dict[str, np.ndarray]:
        """Where points of A lie in B, and how sure that is; only their own rows of the similarities are computed."""
        cell = a.grid.nearest(points)
        index = torch.from_numpy(cell).to(self.device)
        parts: dict[str, list[Tensor]] = {k: [] for k in ("place", "similarity", "share", "back")}
        length = matching.squared_length(b.cells, metric, a.halves)
        for rows in index.split(1024) if len(index) else ():
            sims = matching.query_rows(a.cells[rows], b.cells, metric, halves=a.halves, second_mask=inside[1])
            value, best = sims.max(1)
            scaled = matching.as_cosine(sims, metric, length)
            parts["similarity"].append(value)
            parts["share"].append(matching.softmax_share(scaled, best, b.shape))
            if options.subcell:
                parts["place"].append(matching.between_cells(scaled, best, b.shape))
            else:
                parts["place"].append(torch.stack([best % b.shape[1], best // b.shape[1]], 1) + 0.5)
            back = matching.query_rows(b.cells[best], a.cells, metric, halves=a.halves, second_mask=inside[0])
            parts["back"].append(back.argmax(1))
        if not len(index):
            empty = np.zeros(0, np.float32)
            return {
                "points_b": np.zeros((0, 2), np.float32), "similarity": empty, "confidence": empty,
                "mutual": empty.astype(bool), "cycle_error": empty,
            }  # fmt: skip
        joined = {name: torch.cat(values) for name, values in parts.items()}
        returned = _middles(joined["back"].cpu().numpy(), a.shape)
        steps = np.hypot(*(returned - _middles(cell, a.shape)).T)
        confidence = matching.confidence(joined["share"].cpu(), torch.from_numpy(steps).float())
        return {
            "points_b": b.grid.to_image(joined["place"].double().cpu().numpy()),
            "similarity": joined["similarity"].cpu().numpy(),
            "confidence": confidence.numpy(),
            "mutual": steps == 0,
            "cycle_error": steps * a.grid.step / a.grid.canvas.scale,
        }

    @staticmethod
    def _flow(a: Descriptors, b: Descriptors, nearest: Tensor) -> np.ndarray:
        return flows.cell_flow(_middles(nearest.cpu().numpy(), b.shape), a.grid, b.grid)

    def heat_map(
        self,
        first: Source | Photo | ImageFeatures,
        second: Source | Photo | ImageFeatures,
        point: tuple[float, float],
        options: MatchOptions | None = None,
    ) -> np.ndarray:
        """How similar each place of B is to one point of A: (H_b, W_b) float32, least 0 and greatest 1.

        Args:
            first, second: images, or what :meth:`encode` made of them.
            point: x, y in pixels of the first.
            options: settings of the run.
        """
        options = options or MatchOptions()
        a, b = self._features(first, options), self._features(second, options)
        return self.heat_map_described(self.describe(a, b, options), point, options)

    @torch.no_grad()
    def heat_map_described(
        self,
        descriptors: tuple[Descriptors, Descriptors],
        point: tuple[float, float],
        options: MatchOptions | None = None,
    ) -> np.ndarray:
        """As :meth:`heat_map`, from descriptors: cheap enough for a click."""
        options = options or MatchOptions()
        a, b = descriptors
        cell = int(a.grid.nearest(_checked_points([point], a.size))[0])
        metric: Any = options.resolved_metric
        query = a.cells[cell][None]
        rows = matching.query_rows(query, b.cells, metric, halves=a.halves)[0]
        values = rows.cpu().numpy().reshape(b.shape).astype(np.float32)
        low, high = float(values.min()), float(values.max())
        values = (values - low) / ((high - low) or 1.0)
        return flows.on_pixels(values, b.grid)

    # ------------------------------------------------------------------ swap

    @torch.no_grad()
    def swap(
        self,
        first: Source | Photo | ImageFeatures,
        second: Source | Photo | ImageFeatures,
        masks: tuple[np.ndarray, np.ndarray],
        *,
        resolution: int = 156,
        refine: float = 0.0,
        refine_prompt: str = "",
        refine_steps: int = 20,
        seed: int = 0,
        published: bool = False,
        options: MatchOptions | None = None,
    ) -> SwapResult:
        """The first image with its object painted in the second one's.

        Args:
            first, second: images, or what :meth:`encode` made of them.
            masks: (H, W) of the two objects.
            resolution: cells along a side at which ``published`` carries colours over.
            refine: share of the diffusion steps (0 to 1) through which the result is noised and denoised again, which
                mends seams and textures; 0 does not.
            refine_prompt: caption during refinement.
            refine_steps: denoising steps of the whole schedule.
            seed: of the refinement's noise.
            published: the colours of the nearest of ``resolution`` squared cells, as published. By default places are
                interpolated between cells and smoothed where they are unsure, and pixels are taken from there.
            options: settings of the features.
        """
        from vision3d.pipelines.sd_dino.refine import refine_picture
        from vision3d.pipelines.sd_dino.swap import SwapResult

        options = options or MatchOptions()
        options.check()
        a, b = self._features(first, options), self._features(second, options)
        solid = tuple(
            _checked_mask(mask, image.size, name)
            for mask, image, name in zip(masks, (a, b), ("the first", "the second"), strict=True)
        )
        pair, _ = self.describe_posed(a, b, options, (solid[0], solid[1]))
        if published:
            side = resolution
            maps = [d.map for d in pair]
            canvases = [swap.image_to_canvas(m, max(256, side)).to(self.device) for m in solid]
            painted, _ = swap.swap_colours(
                maps[0], maps[1], b.photo.on_white, (canvases[0], canvases[1]), side
            )
            picture = swap.compose(a.photo.on_white, painted, solid[0])
        else:
            places, certain = self._object_places(pair, solid, options)
            picture = swap.paint(
                a.photo.on_white,
                b.photo.on_white,
                places,
                certain,
                (solid[0], solid[1]),
                (pair[0].grid, pair[1].grid),
            )
        rough = picture
        if refine > 0:
            picture = refine_picture(
                self.backbone, picture, solid[0], strength=refine, prompt=refine_prompt, steps=refine_steps,
                seed=seed, text_layer=self._text_layer,
            )  # fmt: skip
        provenance = options.provenance(
            self.weights_name, self.weights_sha256, self.config, dtype=self._dtype,
            refine=refine, refine_prompt=refine_prompt, refine_steps=refine_steps, refine_seed=seed,
            published=published, resolution=resolution,
            masks=[hashlib.sha256(np.packbits(m).tobytes()).hexdigest() for m in solid],
        )  # fmt: skip
        return SwapResult(
            picture=picture, rough=rough, masks=(solid[0], solid[1]), photo=a.photo, photo_b=b.photo,
            provenance=provenance,
        )  # fmt: skip

    def _object_places(
        self, pair: tuple[Descriptors, Descriptors], masks: Sequence[np.ndarray], options: MatchOptions
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each cell of A its place in B's object ((h * w, 2), x, y in cells), and how sure it is, 0 outside A's."""
        a, b = pair
        inside = [_cell_mask(d, m, self.device) for d, m in zip(pair, masks, strict=True)]
        metric: Any = options.resolved_metric
        length = matching.squared_length(b.cells, metric, a.halves)
        places, sure = [], []
        for rows in torch.arange(len(a.cells), device=self.device).split(1024):
            sims = matching.query_rows(a.cells[rows], b.cells, metric, halves=a.halves, second_mask=inside[1])
            best = sims.argmax(1)
            scaled = matching.as_cosine(sims, metric, length)
            places.append(matching.between_cells(scaled, best, b.shape))
            sure.append(matching.softmax_share(scaled, best, b.shape))
        certain = torch.cat(sure).cpu().numpy() * inside[0].cpu().numpy()
        return torch.cat(places).double().cpu().numpy(), certain

    def __repr__(self) -> str:
        return f"SDDino ({self.weights_name}): {self.backbone!r}; {self.grid((1, 1)).shape[0]} cells along a side"


def _canvas(photo: Photo, side: int, edge: bool, mirrored: bool) -> np.ndarray:
    """The square (side, side, 3) uint8 that a network sees."""
    canvas = square(photo.rgb8, side, edge=edge)
    return np.ascontiguousarray(canvas[:, ::-1]) if mirrored else canvas


def _back(features: Tensor, mirrored: bool) -> Tensor:
    """Features ``(C, h, w)`` of a mirror image, each at its own place."""
    return features.flip(-1) if mirrored else features


def _kept(
    pair: tuple[Descriptors, Descriptors], allowed: Sequence[Tensor], options: MatchOptions
) -> PairDescriptors:
    """The descriptors as they are compared, in half precision."""
    metric: Any = options.resolved_metric
    ready = [prepare(d.cells, metric, d.halves) for d in pair]
    scale = max(float(values.abs().max()) for values in ready) or 1.0
    sides = [
        d.kept(values / scale, mask, padding=options.padding)
        for d, values, mask in zip(pair, ready, allowed, strict=True)
    ]
    return PairDescriptors(
        sides[0], sides[1],
        measure="l1" if metric.startswith("l1") else "l2" if metric.startswith("l2") else "dot",
        scale=scale,
        metric=metric,
        temperature=matching.TEMPERATURE,
        reach=matching.REACH if options.subcell else 0,
        lengths=tuple(float(values.square().sum(-1).mean()) for values in ready),  # type: ignore[arg-type]
    )  # fmt: skip


def _mutual_cells(
    found: matching.CellMatches, grid: tuple[int, int], inside: Tensor, options: MatchOptions
) -> np.ndarray:
    """Cells of A whose match leads back to them, the most confident first."""
    score = matching.confidence(found.share, found.cycle_cells(grid))
    keep = found.mutual & inside & (score >= options.min_confidence)
    cells = keep.nonzero()[:, 0]
    order = score[cells].argsort(descending=True, stable=True)[: options.max_matches]
    return cells[order].cpu().numpy()


def _middles(cells: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(N, 2) x, y of cells' middles on their grid."""
    return np.stack([cells % shape[1], cells // shape[1]], 1) + 0.5


def _cell_mask(descriptors: Descriptors, mask: np.ndarray | None, device: torch.device) -> Tensor:
    """Cells that may be matched: on the image, and in the mask where there is one."""
    if mask is None:
        return descriptors.inside
    solid = _checked_mask(mask, descriptors.size, "an image")
    return torch.from_numpy(descriptors.grid.inside(solid)).to(device)


def _checked_mask(mask: Any, size: tuple[int, int], whose: str) -> np.ndarray:
    """(H, W) bool. Raises InputError for another shape or an empty mask."""
    array = np.asarray(mask)
    if array.ndim == 3 and array.shape[-1] in (1, 3, 4):
        array = array[..., 0]
    if array.shape != tuple(size):
        raise InputError(
            f"a mask of shape {array.shape} for {whose} image of {size[1]}×{size[0]}",
            "give one of the same size",
        )
    solid = array > (127 if array.dtype == np.uint8 and array.max(initial=0) > 1 else 0)
    if not solid.any():
        raise InputError(f"the mask of {whose} image is empty", "mark the object in white")
    return solid


def _checked_points(points: Any, size: tuple[int, int]) -> np.ndarray:
    """(N, 2) float64. Raises InputError for other shapes and for points outside the image."""
    try:
        array = np.asarray(points, np.float64).reshape(-1, 2)
    except (ValueError, TypeError) as error:
        raise InputError("points that are no pairs of x and y", "give (N, 2) numbers in pixels") from error
    height, width = size
    outside = ~((array >= 0).all(1) & (array[:, 0] <= width) & (array[:, 1] <= height))
    if outside.any():
        x, y = array[outside][0]
        raise InputError(
            f"point ({x:g}, {y:g}) lies outside the image of {width}×{height}", "give pixels of it"
        )
    return array


@dataclass(frozen=True)
class LoadingPlan:
    """What would be loaded; made without reading weights.

    Attributes:
        sd, unet, dino, captioner, clip: files or folders, or None.
        config: sizes and places.
        name: of the weights, for results.
        sha256: checksum of the files.
    """

    sd: Path | None
    unet: Path | None
    dino: Path | None
    captioner: Path | None
    clip: Path | None
    config: SDDinoConfig
    name: str
    sha256: str

    @classmethod
    def of(
        cls,
        source: str | Path | None = None,
        *,
        sd: str | Path | None = None,
        unet: str | Path | None = None,
        dino: str | Path | None = None,
        captioner: str | Path | None = None,
        clip: str | Path | None = None,
        features: Features = "sd+dino",
        settings: Mapping[str, Any] | None = None,
    ) -> LoadingPlan:
        """The plan for arguments of :meth:`SDDino.from_pretrained`.

        Raises:
            WeightsError: something is missing.
            InputError: settings that cannot work.
        """
        from vision3d.weights import resolve

        names: list[str] = []
        config: SDDinoConfig | None = None
        sd_path = _named(sd, names) if sd is not None else None
        dino_path = _named(dino, names) if dino is not None else None
        alone = features == "dino" and dino is not None
        if source is not None or (sd is None and not alone):
            path, name = resolve("sddino", source)
            names.insert(0, name)
            if path.is_dir() and (path / CONFIG).is_file():
                config, places = SDDinoConfig.read(path)
                if sd_path is None and "sd" in places:
                    sd_path = _below(path, places["sd"])
                if dino_path is None and "dino" in places:
                    dino_path = _below(path, places["dino"])
            else:
                sd_path = sd_path or path
                dino_path = dino_path or _named("dinov2-vitb14", names)
        if config is None or dino is not None:
            fitting = _config_for(dino_path, alone=sd_path is None)
            of_dino = {name: getattr(fitting, name) for name in _OF_DINO}
            config = fitting if config is None else replace(config, **of_dino)
        unknown = set(settings or {}) - set(SDDinoConfig.__dataclass_fields__)
        if unknown:
            raise InputError(
                f"no setting {sorted(unknown)[0]!r}",
                f"there are {', '.join(SDDinoConfig.__dataclass_fields__)}",
            )
        config = replace(config, **dict(settings or {}))
        config.check()
        unet_path = _named(unet, names) if unet is not None else None
        if unet_path is not None and sd_path is None:
            raise InputError("a UNet without Stable Diffusion", "give both, or leave it out")
        captioner_path = _named(captioner, names) if captioner is not None else None
        clip_path = _named(clip, names) if clip is not None else None
        digest = hashlib.sha256()
        others = [place for place in (unet_path, captioner_path, clip_path) if place is not None]
        for place in (sd_path, dino_path, *others):
            digest.update(b"-" if place is None else loading.fingerprint(place).encode())
        return cls(
            sd_path,
            unet_path,
            dino_path,
            captioner_path,
            clip_path,
            config,
            " + ".join(names),
            digest.hexdigest(),
        )


_OF_DINO = ("dino_size", "dino_layer", "dino_facet", "dino_stride", "dino_norm")
"""Settings that follow the DINO network."""


def _named(source: str | Path, names: list[str]) -> Path:
    from vision3d.weights import resolve

    path, name = resolve("sddino", source)
    names.append(name)
    return path


def _below(folder: Path, place: str) -> Path:
    path = (folder / place).resolve()
    if not path.exists():
        raise WeightsError(f"{folder / CONFIG} names {place}, which is not there", "get the folder again")
    return path


def _config_for(dino: Path | None, *, alone: bool) -> SDDinoConfig:
    """Published settings for the DINO network in a file."""
    if dino is None:
        return SDDinoConfig()
    network = load_any_dino(dino, load=False)
    version = 2 if network.config.layer_scale else 1
    config = SDDinoConfig.for_dino(version, network.config.depth, alone=alone)
    if version == 2 and network.config.patch != 14:
        config = config.changed(dino_size=60 * network.config.patch)
    if isinstance(
        network, Dinov3
    ):  # its authors read dense features after the norm, without which few channels rule
        config = config.changed(dino_norm=True)
    return config


def save_dino(network: Dino | Dinov3, folder: Path) -> None:
    """Writes a DINO network as ``config.json`` and ``model.safetensors``, up to v2 under the hub's names."""
    from safetensors.torch import save

    from vision3d.io.files import json_bytes

    if isinstance(network, Dinov3):
        network.model.save_pretrained(folder)
        return
    config = network.config
    with staged_folder(folder, last="config.json") as staging:
        tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        (staging / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        described = {
            "model_type": "dinov2" if config.layer_scale else "dino",
            "hidden_size": config.width,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.heads,
            "patch_size": config.patch,
            "image_size": config.patch * config.grid,
            "intermediate_size": config.hidden,
            "num_register_tokens": config.registers,
        }
        (staging / "config.json").write_bytes(json_bytes(described))
