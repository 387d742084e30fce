"""PrimeDepth: affine-invariant inverse depth of one photograph from a single Stable Diffusion step.

The image is encoded, almost no noise is added (t = 1), the UNet runs once, and a refiner and a head turn what the
UNet held meanwhile into depth (Zavadski, Kalšan, Rother: "PrimeDepth: Efficient Monocular Depth Estimation with
a Stable Diffusion Preimage", ACCV 2024). Values are unbounded and only their order and affine relation mean
something: larger is nearer, the unit and the zero are unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from typing_extensions import override

from vision3d.backbone import loading
from vision3d.backbone.residency import DiffusersResidency
from vision3d.backbone.schedule import add_noise
from vision3d.backbone.sharing import share, shared_moments
from vision3d.backbone.text import Layer, TextEncoder, load_text_tower
from vision3d.backbone.vae import encode_moments, set_group_norm_eps
from vision3d.device import resolve_device, resolve_dtype
from vision3d.errors import WeightsError
from vision3d.geometry.tiling import Tiling
from vision3d.memory import in_batches
from vision3d.pipelines.primedepth.checkpoint import (
    IN_PIXELS,
    TOWER,
    UNUSED,
    PrimeDepthConfig,
    load_networks,
    tower_apart,
)
from vision3d.pipelines.primedepth.network import TIMESTEP, PredictionHead, PreimageRefiner, Probe
from vision3d.pipelines.primedepth.options import DepthOptions
from vision3d.pipelines.primedepth.tiling import blend_tiles
from vision3d.progress import progress, say

if TYPE_CHECKING:
    from vision3d.io.images import Photo
    from vision3d.pipelines.primedepth.ensemble import SecondOpinion
    from vision3d.results import DepthPrediction

SPACE: Final = "affine-invariant inverse depth"
SMALLEST_TILE: Final = 128
"""Side in pixels; the context of smaller tiles is too narrow."""


def working_size(height: int, width: int, max_size: int = 1024) -> tuple[int, int]:
    """Size ``(height, width)`` at which an image is processed.

    Images within ``max_size`` keep their size. Larger ones are scaled as torchvision's ``Resize`` does: a square to
    ``max_size``, others to a shorter side of ``max_size - 1`` unless the longer then exceeds ``max_size``.
    """
    if max(height, width) <= max_size:
        return height, width
    if height == width:
        return max_size, max_size
    short, long = min(height, width), max(height, width)
    new_short, new_long = max_size - 1, int((max_size - 1) * long / short)
    if new_long > max_size:
        new_short, new_long = int(max_size * new_short / new_long), max_size
    return (new_short, new_long) if height < width else (new_long, new_short)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """PIL's antialiased bilinear resize of ``(H, W, 3)`` uint8 to ``size`` (height, width)."""
    if image.shape[:2] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


class PrimeDepth(DiffusersResidency, DiffusionPipeline):
    """Affine-invariant inverse depth, and optionally ADE20K segmentation, of photographs.

    Args:
        vae: autoencoder with GroupNorm epsilon 1e-5; only its encoder is used.
        unet: frozen Stable Diffusion UNet.
        refiner: reads the UNet's preimage.
        depth_head: refiner output to three channels whose mean is the inverse depth.
        segmentation_head: refiner output to 150 class logits; may be absent.
        text_encoder, tokenizer: tower for the caption, read for prompts whose embeddings are not cached on disk.
        max_size: longest side at which photographs are processed unless a call says otherwise.
        text_layer: of the tower, followed by its final norm: ``last``, as published, or ``penultimate`` for weights
            that were trained with the tower of an SD 2.x folder, which ends there.
    """

    pixel_networks: ClassVar[tuple[str, ...]] = IN_PIXELS
    model_cpu_offload_seq = "text_encoder->vae->unet->refiner->depth_head->segmentation_head"
    _optional_components = ["segmentation_head", "text_encoder", "tokenizer"]  # noqa: RUF012

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        refiner: PreimageRefiner,
        depth_head: PredictionHead,
        segmentation_head: PredictionHead | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        max_size: int = 1024,
        text_layer: Layer = "last",
    ) -> None:
        super().__init__()
        self.register_to_config(max_size=max_size, text_layer=text_layer)
        self.register_modules(
            vae=vae,
            unet=unet,
            refiner=refiner,
            depth_head=depth_head,
            segmentation_head=segmentation_head,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.weights_name = "custom"
        self.weights_sha256: str | None = None
        self.tower_sha256: str | None = None
        self._tile_limit: int | None = None
        self._last_size = (0, 0)
        self._prompts: dict[str, Tensor] = {}

    # ------------------------------------------------------------------ loading

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *,
        torch_dtype: torch.dtype | str | None = None,
        device: str = "auto",
        memory: str | int = "auto",
        config: PrimeDepthConfig | None = None,
        **components: Any,
    ) -> PrimeDepth:
        """Loads the pipeline from a released single file or from a folder written by ``save_pretrained``.

        Args:
            pretrained_model_name_or_path: file or folder; None takes the official weights if they were pulled,
                else those that ship with the package.
            torch_dtype: floating dtype; by default fp32 on CPU, bf16 or fp16 on CUDA.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
            memory: budget such as ``6.5G``; below what everything resident needs, networks are loaded when their
                turn comes and let go after it, batches are split, and large images are cut into tiles.
            config: sizes of a single-file checkpoint other than the published ones.
            components: networks that replace the stored ones, by name; ``text_encoder`` may be the folder, file or
                manifest name of an OpenCLIP ViT-H/14 text tower (all 24 layers), for checkpoints that come without
                one, which otherwise take the pulled one.

        Raises:
            WeightsError: missing, damaged or foreign weights.
            InputError: an unknown argument.
        """
        from vision3d.weights import resolve

        components = cls.components_among(components)
        place = resolve_device(device)
        dtype = resolve_dtype(torch_dtype if torch_dtype is not None else "auto", place)
        path, name = resolve("primedepth", pretrained_model_name_or_path)
        if path.is_file():
            networks: dict[str, Any] = dict(load_networks(path, config, dtype=dtype))
        else:
            networks = cls._from_folder(path, dtype)
        tower, given = None, components.get("text_encoder")
        if "text_encoder" not in components or isinstance(given, (str, Path)):
            components.pop("text_encoder", None)
            tower = tower_apart(path, given)
            if tower is not None:
                networks["text_encoder"] = load_text_tower(tower, dtype=dtype, load=False)
        networks.update(components)
        for shared in ("vae", "unet"):
            networks[shared] = share(networks[shared])
        pipeline = cls(**networks)
        pipeline.weights_name, pipeline.weights_sha256 = name, loading.fingerprint(path)
        pipeline.tower_sha256 = loading.fingerprint(tower) if tower is not None else None
        say(f"PrimeDepth weights: {name}")
        encoder = pipeline.vae.encoder
        pipeline.place(place, memory, encoder, pipeline.unet, pipeline.refiner, pipeline.depth_head)
        pipeline.load_unless_sequential(pipeline.vae, pipeline.unet, pipeline.refiner, pipeline.depth_head)
        return pipeline

    @staticmethod
    def _from_folder(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
        index = loading.read_config(folder, "model_index.json")
        if index.get("_class_name") != "PrimeDepth":
            raise WeightsError(
                f"{folder}: this folder holds a {index.get('_class_name', 'pipeline of unknown class')}",
                "give a PrimeDepth folder",
            )
        kinds: dict[str, type] = {
            "vae": AutoencoderKL,
            "unet": UNet2DConditionModel,
            "refiner": PreimageRefiner,
            "depth_head": PredictionHead,
            "segmentation_head": PredictionHead,
        }
        networks: dict[str, Any] = {
            "max_size": index.get("max_size", 1024),
            "text_layer": index.get("text_layer", "last"),
        }
        for name, kind in kinds.items():
            if (folder / name).is_dir():
                networks[name] = loading.load_component(
                    kind,
                    folder / name,
                    dtype=PrimeDepth.network_dtype(name, dtype),
                    load=False,
                    optional=UNUSED if name == "vae" else (),
                )
        missing = [n for n in ("vae", "unet", "refiner", "depth_head") if n not in networks]
        if missing:
            raise WeightsError(
                f"{folder}: no {', '.join(missing)} in this folder", "it is incomplete; get it again"
            )
        set_group_norm_eps(networks["vae"], 1e-5)
        if (folder / "text_encoder").is_dir():
            networks["text_encoder"] = load_text_tower(folder / "text_encoder", dtype=dtype, load=False)
        if (folder / "tokenizer").is_dir():
            networks["tokenizer"] = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        return networks

    @override
    def used_parts(self, network: nn.Module) -> tuple[str, ...]:
        """The decoder of the autoencoder is never run, so it is never read from disk."""
        return ("encoder", "quant_conv") if network is self.vae else ()

    # ------------------------------------------------------------------ networks

    def prompt_embeddings(self, prompt: str = "") -> Tensor:
        """Text context ``(1, 77, width)`` of a caption; computed once and cached on disk.

        Raises:
            WeightsError: the embedding is not cached and no text tower is at hand.
        """
        if prompt not in self._prompts:
            if self.text_encoder is None:
                raise WeightsError(
                    f"no text encoder to embed the prompt {prompt!r}",
                    f"get one with `vision3d weights pull {TOWER}`, or give its file with --text-encoder",
                )
            encoder = TextEncoder(self.text_encoder, self.tokenizer, pad=0, device=self._device)
            self._prompts[prompt] = encoder.embed([prompt], layer=self.config.text_layer)
            encoder.drop()
        return self._prompts[prompt]

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latents ``(B, 4, h/8, w/8)`` of images in [0, 1]; the posterior mean unless ``noise`` is given.

        An image that a pipeline with the same autoencoder has encoded is not encoded again.
        """

        def run(batch: Tensor) -> tuple[Tensor, Tensor]:
            with self.resident(self.vae):
                return encode_moments(self.vae, batch)

        mean, logvar = shared_moments(self.vae, images, encode=run)
        if noise is not None:
            mean = mean + (0.5 * logvar).exp() * noise
        return (mean * self.vae.config.scaling_factor).to(self.unet.dtype)

    @torch.no_grad()
    def refine(self, latents: Tensor, noise: Tensor, context: Tensor, probe: Probe | None = None) -> Tensor:
        """Refiner output for clean latents: noise to t = 1, one UNet pass, the refiner beside it."""
        noisy = add_noise(latents, noise, TIMESTEP)
        with self.resident(self.unet, self.refiner):
            return self.refiner(self.unet, noisy, context.to(noisy), probe=probe)

    @torch.no_grad()
    def predict_depth(self, refined: Tensor) -> Tensor:
        """Inverse depth ``(B, 1, 8h, 8w)``: the mean of the head's channels."""
        with self.resident(self.depth_head):
            return self.depth_head(refined.to(self.depth_head.dtype)).mean(dim=1, keepdim=True)

    @torch.no_grad()
    def predict_segmentation(self, refined: Tensor) -> Tensor:
        """ADE20K class logits ``(B, 150, 8h, 8w)``.

        Raises:
            WeightsError: these weights have no segmentation head.
        """
        if self.segmentation_head is None:
            raise WeightsError("these weights have no segmentation head", "run without segmentation")
        with self.resident(self.segmentation_head):
            return self.segmentation_head(refined)

    # ------------------------------------------------------------------ images

    def predict(
        self,
        photos: Sequence[Photo],
        options: DepthOptions | None = None,
        *,
        generator: torch.Generator | None = None,
        second_opinion: SecondOpinion | None = None,
    ) -> list[DepthPrediction]:
        """Predictions for photographs, in order; those of one size run as one batch.

        Args:
            photos: loaded photographs.
            options: settings of the run.
            generator: draws the noise of all photographs in turn instead of the seed; must live on the CPU.
            second_opinion: another affine-invariant depth whose aligned values are averaged in.

        Returns:
            Inverse depth at each photograph's own size.

        Raises:
            InputError: an option is out of range.
            WeightsError: no segmentation head, or no text tower for a new prompt.
        """
        options = options or DepthOptions()
        options.check()
        options = replace(
            options,
            dtype=str(self.unet.dtype).removeprefix("torch."),
            second_opinion=second_opinion.name if second_opinion is not None else None,
            second_opinion_sha256=second_opinion.sha256 if second_opinion is not None else None,
            text_encoder_sha256=self.tower_sha256,
        )
        context = self.prompt_embeddings(options.prompt)
        sizes: dict[tuple[int, int], list[int]] = {}
        for i, photo in enumerate(photos):
            size = working_size(*photo.size, options.max_size or self.config.max_size)
            if size != tuple(photo.size):  # no side of a long panorama becomes smaller than one latent
                size = max(8, size[0]), max(8, size[1])
            sizes.setdefault(size, []).append(i)
        results: dict[int, DepthPrediction] = {}
        batches = (
            (size, members[start : start + most])
            for size, members in sizes.items()
            for most in [self._batch_that_fits(size, options.tile, len(members))]
            for start in range(0, len(members), most)
        )
        for size, members in batches:
            self._last_size = size
            arrays = [resize_image(photos[i].rgb8, size) for i in members]
            images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).to(self._device).float() / 255
            noises = [self._noise(size, options, generator) for _ in members]
            tile = self._tile_side(size, options.tile)
            depth, classes = self._dense(images, noises, context, options.segmentation, tile)
            for row, i in enumerate(members):
                labels = None if classes is None else classes[row]
                result = self._result(photos[i], depth[row : row + 1], labels, second_opinion, options)
                if tile is not None and tile != options.tile:
                    remark = f"processed in tiles of {tile} pixels to fit into memory"
                    result.provenance = replace(result.provenance, remarks=(remark,))
                results[i] = result
        return [results[i] for i in range(len(photos))]

    def _noise(
        self, size: tuple[int, int], options: DepthOptions, generator: torch.Generator | None
    ) -> tuple[Tensor | None, Tensor]:
        """Noise of the posterior (None: its mean is taken) and of the diffusion step, drawn in turn on the CPU."""
        source = generator or torch.Generator().manual_seed(options.seed)
        shape = (1, self.vae.config.latent_channels, size[0] // 8, size[1] // 8)
        posterior = None if options.deterministic else torch.randn(shape, generator=source)
        return posterior, torch.randn(shape, generator=source)

    def _pixels_that_fit(self) -> float | None:
        """Pixels whose activations fit the memory budget at once, or None without one."""
        if self._memory_budget is None:
            return None
        if self._sequential:
            resident = loading.parameter_bytes(self.depth_head) + (2 << 29)
        else:
            resident = (2 << 29) + loading.parameter_bytes(
                self.unet, self.refiner, self.vae.encoder, self.depth_head
            )
        widest = self.depth_head.config.block_out_channels
        return max(0, self._memory_budget - resident) / (4 * (2 * widest[0] + 3 * widest[1]))

    def _tile_side(self, size: tuple[int, int], tile: int | None) -> int | None:
        """Side of tiles that fit the memory budget, or None when the whole image does."""
        fitting = self._pixels_that_fit()
        if tile is None and fitting is not None and fitting < size[0] * size[1]:
            tile = max(2 * SMALLEST_TILE, int(fitting**0.5) // 64 * 64)
        if self._tile_limit is not None:
            tile = min(tile or self._tile_limit, self._tile_limit)
        return tile if tile is not None and max(size) > tile else None

    def _batch_that_fits(self, size: tuple[int, int], tile: int | None, count: int) -> int:
        """How many of ``count`` images of one size go through together within the memory budget."""
        fitting, side = self._pixels_that_fit(), self._tile_side(size, tile)
        if fitting is None:
            return count
        pixels = size[0] * size[1] if side is None else min(side, size[0]) * min(side, size[1])
        return min(count, max(1, int(fitting // pixels)))

    def use_less_memory(self) -> str | None:
        """Cut images into smaller tiles from now on, because the last one was too large for memory.

        Returns:
            what is done, for people; None when tiles get no smaller.
        """
        side = min(max(self._last_size), self._tile_limit or max(self._last_size))
        smaller = side // 2 // 64 * 64
        if smaller < SMALLEST_TILE:
            return None
        self._tile_limit = smaller
        return f"going on with tiles of {smaller} pixels"

    def _dense(
        self,
        images: Tensor,
        noises: Sequence[tuple[Tensor | None, Tensor]],
        context: Tensor,
        segmentation: bool,
        tile: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Inverse depth ``(B, 1, ~h, ~w)`` and class indices ``(B, ~h, ~w)`` of equal-size images in [0, 1]."""
        if tile is None:
            posterior = (
                None if noises[0][0] is None else torch.cat([n[0] for n in noises if n[0] is not None])
            )
            refined = self.refine(
                self.encode(images, posterior.to(images) if posterior is not None else None),
                torch.cat([n[1] for n in noises]).to(images.device, self.unet.dtype),
                context,
            )
            depth = self.predict_depth(refined).float()
            classes = self.predict_segmentation(refined).argmax(dim=1) if segmentation else None
            return depth, classes
        return self._tiled(images, noises, context, segmentation, tile)

    def _tiled(
        self,
        images: Tensor,
        noises: Sequence[tuple[Tensor | None, Tensor]],
        context: Tensor,
        segmentation: bool,
        tile: int,
    ) -> tuple[Tensor, Tensor | None]:
        """A whole-image pass small enough for one tile, then tiles fitted to it and blended."""
        height, width = images.shape[-2:]
        scale = tile / max(height, width)
        small_size = max(16, round(height * scale)), max(16, round(width * scale))
        small = F.interpolate(images, size=small_size, mode="bilinear", antialias=True)
        grid = small_size[0] // 8, small_size[1] // 8
        whole, coarse_classes = self._dense(small, _cut(noises, *grid), context, segmentation, None)
        reference = F.interpolate(whole, size=(height, width), mode="bilinear", align_corners=False)
        tiling = Tiling(height, width, tile)
        parts, labels = [], []
        for box in progress(tiling.boxes, description="tiles"):
            top, left, bottom, right = box
            cut = _cut(noises, (bottom - top) // 8, (right - left) // 8)
            part, part_classes = self._dense(
                images[:, :, top:bottom, left:right], cut, context, segmentation, None
            )
            parts.append(F.interpolate(part, size=(bottom - top, right - left), mode="bilinear"))
            labels.append(part_classes)
        depth = blend_tiles(parts, tiling, reference)
        if coarse_classes is None:
            return depth, None
        classes = F.interpolate(coarse_classes[:, None].float(), size=(height, width), mode="nearest")[
            :, 0
        ].long()
        for (top, left, bottom, right), part_classes in zip(tiling.boxes, labels, strict=True):
            assert part_classes is not None
            h, w = part_classes.shape[-2:]
            classes[:, top : top + h, left : left + w] = part_classes
            del bottom, right
        return depth, classes

    def _result(
        self,
        photo: Photo,
        depth: Tensor,
        classes: Tensor | None,
        second_opinion: SecondOpinion | None,
        options: DepthOptions,
    ) -> DepthPrediction:
        from vision3d.results import DepthPrediction

        full = F.interpolate(depth, size=photo.size, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()
        if second_opinion is not None:
            full = second_opinion.average(full, photo)
        segmentation = None
        if classes is not None:
            labels = F.interpolate(classes[None, None].float(), size=photo.size, mode="nearest")[0, 0]
            segmentation = labels.cpu().numpy().astype(np.uint8)
        return DepthPrediction(
            depth=np.ascontiguousarray(full, dtype=np.float32),
            space=SPACE,
            valid=photo.opaque,
            photo=photo,
            segmentation=segmentation,
            provenance=options.provenance(self.weights_name, self.weights_sha256),
        )

    def stream(
        self,
        photos: Iterable[Photo],
        options: DepthOptions | None = None,
        *,
        batch_size: int = 1,
        generator: torch.Generator | None = None,
        second_opinion: SecondOpinion | None = None,
    ) -> Iterator[DepthPrediction]:
        """Predictions one after the other, reading ``photos`` only as far as the next batch.

        When memory runs out, batches get smaller, then images are cut into tiles; a line on screen says so.
        ``generator`` and ``second_opinion`` are as for :meth:`predict`.
        """

        def process(batch: Sequence[Photo]) -> list[DepthPrediction]:
            return self.predict(batch, options, generator=generator, second_opinion=second_opinion)

        return in_batches(process, photos, batch_size, use_less=self.use_less_memory, generator=generator)

    def __call__(
        self,
        images: Any,
        *,
        batch_size: int = 1,
        generator: torch.Generator | None = None,
        second_opinion: SecondOpinion | str | Path | None = None,
        **options: Any,
    ) -> DepthPrediction | list[DepthPrediction]:
        """Inverse depth of whatever holds images.

        Args:
            images: a path, folder, glob, video, PIL image, array or tensor, or a list of these.
            batch_size: images per pass; those of one size run together.
            generator: draws the noise instead of ``seed``; must live on the CPU.
            second_opinion: another affine-invariant depth that is averaged in, or the name or folder of one.
            options: fields of :class:`DepthOptions` (``prompt``, ``max_size``, ``seed``, ``deterministic``,
                ``segmentation``, ``tile``).

        Returns:
            One prediction for one image, else a list of them in order.

        Raises:
            InputError: nothing there that can be read as an image, or an option is out of range.
        """
        from vision3d.io.images import holds_many, iter_photos, load_photo
        from vision3d.pipelines.primedepth.ensemble import SecondOpinion

        chosen = DepthOptions(**options)
        if isinstance(second_opinion, (str, Path)):
            second_opinion = SecondOpinion.from_pretrained(second_opinion, self._device)
        extras: dict[str, Any] = {"generator": generator, "second_opinion": second_opinion}
        if not isinstance(images, (list, tuple)) and not holds_many(images):
            return next(self.stream([load_photo(images)], chosen, **extras))
        photos = (reference.load() for reference in iter_photos(images))
        return list(self.stream(photos, chosen, batch_size=batch_size, **extras))


def _cut(
    noises: Sequence[tuple[Tensor | None, Tensor]], height: int, width: int
) -> list[tuple[Tensor | None, Tensor]]:
    """The top left corner of every image's noise."""
    return [
        (None if first is None else first[..., :height, :width], second[..., :height, :width])
        for first, second in noises
    ]
