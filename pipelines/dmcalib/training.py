"""Training DM-Calib: the calibration UNet, and the depth UNet with its decoder (DM-Calib, section 4).

The authors released no training code. As published: v-prediction with multi-resolution noise on Camera Images
(calibration), and a single step at t = 1000 without noise, judged in pixels, with the decoder trained along (depth).
Ours: the norm of the depth loss, and calibration in one step. There the network sees zeros at the schedule's end
and its answer is judged as a picture and by the focal length that the picture shows. A small autoencoder that was
trained on photographs alone holds neither the colours of Camera Images nor the thin lines that show a perspective;
for such a one, Camera Images can be given a decoder and photographs an encoder of their own, trained along.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from typing_extensions import Self, override

from vision3d.backbone.schedule import add_noise, alpha_sigma, to_x0, training_target
from vision3d.backbone.vae import encode_moments
from vision3d.camera import Intrinsics
from vision3d.errors import InputError, Vision3DError, WeightsError
from vision3d.geometry.rays import AZIMUTH, POLAR, angle_channels, ray_angles
from vision3d.io.files import atomic_path, atomic_write_json
from vision3d.pipelines.dmcalib import augmentation
from vision3d.pipelines.dmcalib.camera_image import (
    CLIPPED,
    decode_intrinsics,
    encode_camera_image,
)
from vision3d.pipelines.dmcalib.checkpoint import (
    CALIBRATION_FOLDERS,
    DECODER_FILES,
    DEPTH_FOLDERS,
    EMBEDDINGS,
    ENCODER_FILE,
    Contexts,
    encoder_only,
    find_base,
    load_encoder,
    prompt_of,
)
from vision3d.pipelines.dmcalib.options import INDEX, DMCalibConfig
from vision3d.pipelines.dmcalib.pipeline import DEPTH_TIMESTEP, PREDICTION, TRAIN_STEPS
from vision3d.pipelines.dmcalib.preprocess import Canvas
from vision3d.training.checkpoint import export_component, save_tensors
from vision3d.training.data import (
    HELD_OUT_SEED,
    RenderedWorld,
    SampleSource,
    describe_run,
    open_source,
)
from vision3d.training.dense import at_cells, read_out, recipe_settings
from vision3d.training.geometry_prior import TIMESTEP as GEOMETRY_STEP
from vision3d.training.losses import gradient_matching_loss, known_depth
from vision3d.training.prior import TurnTaking, checksums, component_folder, load_module, preset
from vision3d.training.task import Batch, Batches, Task, TaskOptions, noise

LAST_STEP = TRAIN_STEPS - 1
HELD_OUT = 64
DOMAINS = ("indoor", "outdoor", "object", "any")
OBJECT_KINDS = ("studio", "shapes")
"""Scenes of the procedural world that show objects rather than places."""


# Data ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augmentation:
    """What is done to a photograph and its camera before training.

    Args:
        zoom: range of the factor by which a picture is enlarged before a window of it is cut.
        whole: share of the pictures that are left whole (but for the shape that is asked for).
        uneven: share of the windows whose two directions are enlarged by factors of their own, as in the published
            crop-zoom.
        flip: mirror half of them.
        bands: share of the pictures that get black bands on two opposite sides.
        band_size: largest width of a band, as a share of the longer side (30 pixels of 768 as published).
        photometric: share of the pictures whose colours are augmented.
    """

    zoom: tuple[float, float] = (1.0, 2.0)
    whole: float = 0.0
    uneven: float = 0.5
    flip: bool = True
    bands: float = 0.1
    band_size: float = 30 / 768
    photometric: float = 0.5


@dataclass(frozen=True)
class Window:
    """A part of a picture and the size that it is resampled to."""

    x: int
    y: int
    width: int
    height: int
    size: tuple[int, int]  # (width, height)
    mirrored: bool = False

    @classmethod
    def draw(
        cls, width: int, height: int, size: tuple[int, int], plan: Augmentation, rng: np.random.Generator
    ) -> Window:
        """A window of a picture of ``width`` × ``height``, shaped like ``size`` but for uneven ones."""
        share = min(width / size[0], height / size[1])
        zooms = np.ones(2)
        if rng.random() >= plan.whole:
            zooms[:] = rng.uniform(*plan.zoom)
            if rng.random() < plan.uneven:
                zooms[1] = rng.uniform(*plan.zoom)
        w, h = (
            max(2, min(n, round(share * s / z))) for n, s, z in zip((width, height), size, zooms, strict=True)
        )
        x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        return cls(x, y, w, h, size, plan.flip and rng.random() < 0.5)

    def image(self, values: np.ndarray) -> np.ndarray:
        """The window of an image (H, W, 3) uint8, by pixel areas."""
        import cv2

        part = values[self.y : self.y + self.height, self.x : self.x + self.width]
        smaller = self.size[0] < self.width
        part = cv2.resize(part, self.size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
        return np.ascontiguousarray(part[:, ::-1] if self.mirrored else part)

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """The window of a map (H, W), each pixel the nearest one's value."""
        columns = self.x + ((np.arange(self.size[0]) + 0.5) * self.width / self.size[0]).astype(np.int64)
        rows = self.y + ((np.arange(self.size[1]) + 0.5) * self.height / self.size[1]).astype(np.int64)
        part = values[rows[:, None], columns[None, :]]
        return np.ascontiguousarray(part[:, ::-1] if self.mirrored else part)

    def camera(self, K: np.ndarray) -> Intrinsics:
        """The camera of the window's picture."""
        K = np.array(K, np.float64)
        K[0, 2] -= self.x
        K[1, 2] -= self.y
        K[0] *= self.size[0] / self.width
        K[1] *= self.size[1] / self.height
        camera = Intrinsics(K[0, 0], K[1, 1], K[0, 2], K[1, 2], *self.size)
        return camera.mirrored() if self.mirrored else camera


@dataclass
class CameraBatches:
    """Photographs with their Camera Images and depth, as stacked tensors.

    Every batch has pictures of one shape. Fields: ``image`` (B, 3, H, W) in [0, 1]; ``camera`` (B, 3, H, W) in [-1,
    1]; ``mask`` (B, H, W) bool, where there is a picture and neither padding nor band; ``depth`` (B, H, W) metres,
    inf for sky; ``focal`` (B, 2) and ``centre`` (B, 2) of the picture in pixels of the tensor; ``domain`` (B,) index
    into :data:`DOMAINS`.

    Args:
        source: the samples.
        batch_size: photographs in a batch.
        size: (width, height) of the pictures.
        canvas: side of the square that they are padded to; None leaves them as they are.
        plan: augmentation.
        seed: with the index it fixes everything random.
    """

    source: SampleSource
    batch_size: int
    size: tuple[int, int]
    canvas: int | None
    plan: Augmentation
    seed: int = 0
    _order: tuple[int, np.ndarray] | None = field(default=None, init=False, repr=False)

    def __getitem__(self, index: int) -> dict[str, Any]:
        examples = [self.example(index * self.batch_size + j) for j in range(self.batch_size)]
        return {name: torch.stack([e[name] for e in examples]) for name in examples[0]}

    def example(self, position: int) -> dict[str, Tensor]:
        """One example of the endless stream."""
        epoch, offset = divmod(position, len(self.source))
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self.seed, 1, epoch)).permutation(len(self.source))
            self._order = (epoch, order)
        sample = self.source[int(self._order[1][offset])]
        return prepared(
            sample, self.size, self.canvas, self.plan, np.random.default_rng((self.seed, 2, position))
        )


def prepared(
    sample: Any,
    size: tuple[int, int],
    canvas: int | None,
    plan: Augmentation,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """One example of :class:`CameraBatches` from a ``Sample``."""
    height, width = sample.image.shape[:2]
    window = Window.draw(width, height, size, plan, rng)
    image = window.image(sample.image)
    if rng.random() < plan.photometric:
        from vision3d.synthetic import augment

        image = augment(image, rng)
    camera = window.camera(sample.K)
    there = np.ones(size[::-1], bool)
    if rng.random() < plan.bands:
        largest = max(1, round(plan.band_size * max(size)))
        kept = augmentation.zero_bands(size[1], size[0], rng, largest)
        there[:] = False
        there[kept] = True
        image = np.where(there[..., None], image, 0).astype(np.uint8)
    rgb = image.astype(np.float32) / 255
    picture = np.where(there[None], encode_camera_image(camera, rgb), np.float32(-1))
    result = {
        "image": torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))),
        "camera": torch.from_numpy(picture.astype(np.float32)),
        "mask": torch.from_numpy(there),
        "depth": torch.from_numpy(window.nearest(np.asarray(sample.depth)).astype(np.float32)),
    }
    centre = np.array([camera.cx, camera.cy])
    if canvas is not None:
        place = Canvas.fit(size[1], size[0], canvas, canvas)
        if (place.width, place.height) != size:
            raise InputError(f"pictures of {size} on a canvas of {canvas}", "let the longer side fill it")
        edges = {"image": 0.0, "camera": -1.0, "depth": math.inf}
        for name, value in edges.items():
            result[name] = place.pad(
                result[name][None, None] if name == "depth" else result[name][None], value
            )[0]
        result["depth"] = result["depth"][0]
        result["mask"] = place.pad(result["mask"][None, None].float())[0, 0] > 0.5
        centre += [place.left, place.top]
    result["focal"] = torch.tensor([camera.fx, camera.fy], dtype=torch.float32)
    result["centre"] = torch.from_numpy(centre.astype(np.float32))
    result["domain"] = torch.tensor(DOMAINS.index(domain_of(sample)))
    return result


def domain_of(sample: Any) -> str:
    """Which of the published domains a procedural scene belongs to."""
    depth = np.asarray(sample.depth)
    known = depth[np.isfinite(depth)]
    if not known.size or np.mean(~np.isfinite(depth)) > 0.02 or np.percentile(known, 95) > 45:
        return "outdoor"
    is_object = getattr(sample, "kind", "") in OBJECT_KINDS and known.max() < 10
    return "object" if is_object else "indoor"


# Networks -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UNetShape:
    """A small UNet in the place of Stable Diffusion's, of a prior's layers where they fit.

    Args:
        channels: width of each level.
        heads: attention heads of each level.
        attends: whether a level has transformers.
        layers: ResNets per level.
        groups: of the norms.
        middle: whether there is a block between the way down and the way up.
    """

    channels: tuple[int, ...]
    heads: tuple[int, ...]
    attends: tuple[bool, ...]
    layers: int = 1
    groups: int = 8
    middle: bool = True

    def config(self, context: int, sample_size: int, latents: int = 4) -> dict[str, Any]:
        """For ``UNet2DConditionModel``: two pictures' ``latents`` channels in, one's out."""
        kinds = ["CrossAttn" if a else "" for a in self.attends]
        return {
            "sample_size": sample_size,
            "in_channels": 2 * latents,
            "out_channels": latents,
            "block_out_channels": self.channels,
            "layers_per_block": self.layers,
            "cross_attention_dim": context,
            "attention_head_dim": self.heads,
            "use_linear_projection": True,
            "norm_num_groups": self.groups,
            "mid_block_type": "UNetMidBlock2DCrossAttn" if self.middle else None,
            "down_block_types": tuple(f"{k}DownBlock2D" for k in kinds),
            "up_block_types": tuple(f"{k}UpBlock2D" for k in reversed(kinds)),
        }


MINI_SHAPE = UNetShape((32, 48, 64), (2, 3, 4), (False, True, True), groups=16, middle=False)
"""The three finest levels of the mini prior, with every second layer left out."""


def widened(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A Stable Diffusion UNet with room for the latents of a second picture: ``conv_in`` doubled and halved.

    At first it computes what the plain one would for the mean of the two.
    """
    conv = unet.conv_in
    latents = unet.config.out_channels
    if conv.in_channels == 2 * latents:
        return unet
    wide = nn.Conv2d(2 * latents, conv.out_channels, conv.kernel_size, padding=conv.padding)  # type: ignore[arg-type]
    with torch.no_grad():
        wide.weight.copy_(torch.cat([conv.weight, conv.weight], dim=1) / 2)
        wide.bias.copy_(conv.bias)  # type: ignore[union-attr, arg-type]
    unet.conv_in = wide
    unet.register_to_config(in_channels=2 * latents)
    return unet


def take_layers(
    unet: UNet2DConditionModel, prior: UNet2DConditionModel, photo: slice, step: int | None
) -> None:
    """Start a smaller UNet of two pictures from what a prior of one knows, in place.

    Levels count from the finest. Of a level's layers the last (on the way up) and the first ones are taken, and of
    those the tensors whose shapes agree; what has no counterpart stays as it is.

    Args:
        unet: the new one.
        prior: of as many levels or more.
        photo: the input channels that the photograph's latents come in on; at first the others are not looked at.
        step: the step at which the prior knows photographs. The new one believes to be there whatever it is told:
            for networks that are only ever asked at one. None leaves time as it is.
    """
    own, known = unet.state_dict(), prior.state_dict()
    levels = len(unet.up_blocks), len(prior.up_blocks)
    for name, values in own.items():
        parts = name.split(".")
        if parts[0] == "up_blocks":
            block = int(parts[1]) + levels[1] - levels[0]
            if (
                parts[2] in ("resnets", "attentions")
                and int(parts[3]) == len(unet.up_blocks[int(parts[1])].resnets) - 1
            ):
                parts[3] = str(len(prior.up_blocks[block].resnets) - 1)
            parts[1] = str(block)
        source = known.get(".".join(parts))
        if source is not None and source.shape == values.shape:
            values.copy_(source)
    conv, plain = unet.conv_in, prior.conv_in
    if conv.weight[:, photo].shape == plain.weight.shape:
        with torch.no_grad():
            conv.weight.zero_()
            conv.weight[:, photo] = plain.weight
    time = unet.time_embedding
    if (
        step is not None
        and own["time_embedding.linear_1.weight"].shape == known["time_embedding.linear_1.weight"].shape
    ):
        with torch.no_grad():
            told = prior.time_proj(torch.tensor([step])).to(prior.dtype)
            time.linear_1.bias.copy_(prior.time_embedding.linear_1(told)[0])
            time.linear_1.weight.zero_()


def make_unet(
    init: Path,
    folders: Sequence[str],
    shape: UNetShape | None,
    side: int,
    context: int,
    latents: int,
    photo: int,
    step: int | None,
) -> Any:
    """The UNet to train: that of an earlier export, or the prior's, widened or of a given shape.

    Args:
        init, folders: where weights are, and where an earlier export would be in there.
        shape: of a UNet of its own; it starts from the prior's layers where there is a prior.
        side: of the pictures that it is made for.
        context, latents: width of the text embeddings, and channels of one picture's latents.
        photo: which of the two pictures the photograph is.
        step: for networks of a shape of their own that are only ever asked at one step, the one at which the
            prior knows photographs; see :func:`take_layers`.
    """
    for folder in folders:
        if (init / folder / "config.json").is_file():
            unet = load_module(UNet2DConditionModel, init / folder)
            wanted = None if shape is None else list(shape.channels)
            if wanted is not None and list(unet.config.block_out_channels) != wanted:
                raise WeightsError(
                    f"{init / folder} has channels {list(unet.config.block_out_channels)}, this preset {wanted}",
                    "start from other weights or choose the preset that made these",
                )
            return unet
    if shape is None:
        return widened(load_module(UNet2DConditionModel, component_folder(init, "unet")))
    unet = UNet2DConditionModel(**shape.config(context, side // 8, latents))
    if (init / "unet" / "config.json").is_file():
        prior = load_module(UNet2DConditionModel, init / "unet")
        take_layers(unet, prior, slice(photo * latents, (photo + 1) * latents), step)
    return unet


def write_half(network: nn.Module, path: Path) -> None:
    """A decoder or encoder as a state dict in half precision. Raises WeightsError if not finite in it."""
    tensors = {name: value.detach().half() for name, value in network.state_dict().items()}
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{name} of {path.name} is not finite in fp16", "the training has diverged")
    with atomic_path(path) as temporary:
        save_tensors(tensors, temporary)


def read_decoder(vae: Any, folder: Path) -> Any:
    """A float32 decoder to train: that of an earlier export's folder, or a copy of the autoencoder's."""
    from vision3d.backbone.loading import load_weights
    from vision3d.pipelines.dmcalib.checkpoint import load_decoder

    file = folder / DECODER_FILES[0]
    if not file.is_file():
        return copy.deepcopy(vae.decoder).requires_grad_(True)
    decoder = load_decoder(file, vae.config, torch.float32)
    load_weights(decoder)
    return copy.deepcopy(decoder).requires_grad_(True)


def read_encoder(vae: Any, folder: Path) -> Any:
    """A float32 encoder of photographs to train: that of an earlier export's folder, or a copy of the autoencoder's."""
    from vision3d.backbone.loading import load_weights

    if not (folder / ENCODER_FILE).is_file():
        return encoder_only(copy.deepcopy(vae)).requires_grad_(True)
    encoder = load_encoder(folder / ENCODER_FILE, vae.config, torch.float32)
    load_weights(encoder)
    return copy.deepcopy(encoder).requires_grad_(True)


def multi_resolution_noise(
    shape: Sequence[int], generator: torch.Generator, device: torch.device, strength: float = 0.9
) -> Tensor:
    """Noise (B, C, h, w) of unit variance with parts at all scales, each ``strength`` times the one before.

    Keeps the mean and slope of a picture, all that a Camera Image has, from showing through the noise.
    """
    total = noise(shape, generator, device)
    height, width = shape[-2:]
    level = 0
    while min(height, width) > 1:
        level += 1
        height, width = math.ceil(height / 2), math.ceil(width / 2)
        coarse = noise((*shape[:2], height, width), generator, device)
        total = total + strength**level * F.interpolate(coarse, size=tuple(shape[-2:]), mode="bilinear")
    return total / total.flatten(1).std(dim=1).clamp_min(1e-6)[:, None, None, None]


class _DMCalibTask(Task):
    """What both tasks share: the frozen autoencoder, the prompts, held-out pictures, the exported folder."""

    presets: ClassVar[Mapping[str, Any]]

    def __init__(self, recipe: Any, source: SampleSource, options: TaskOptions) -> None:
        self._recipe = recipe
        if options.init is None:
            raise InputError(
                f"{self.name} needs a prior",
                "give --init a Stable Diffusion 2.1 folder, the export of prior-unet, or an earlier DM-Calib export",
            )
        self.source, self.options, self.init = source, options, options.init
        base = find_base(self.init, None) if self.goes_on else self.init
        self.vae: Any = load_module(AutoencoderKL, component_folder(base, "vae"))
        self.contexts = Contexts.find(self.init, base)
        self._held: list[dict[str, Tensor]] | None = None
        self.photo_encoder: Any = None

    @override
    def recipe(self) -> dict[str, Any]:
        return recipe_settings(self._recipe)

    @classmethod
    @override
    def from_options(cls, options: TaskOptions) -> Self:
        recipe = preset(cls.presets, options.preset, cls.name)
        return cls(recipe, open_source(options.data, recipe.world), options)

    def make_unet(self, folders: Sequence[str], side: int, photo: int, one_step: bool) -> Any:
        """The UNet to train, see :func:`make_unet`; recomputing activations where that is asked for."""
        shape, width = self._recipe.unet, self.context_width
        step = GEOMETRY_STEP if one_step else None
        unet = make_unet(self.init, folders, shape, side, width, self.vae.config.latent_channels, photo, step)
        if self.options.recomputes:
            unet.enable_gradient_checkpointing()
        return unet

    @property
    def context_width(self) -> int:
        """Width of the prompts' embeddings."""
        return self.contexts[""].shape[-1]

    @override
    def frozen(self) -> Iterable[nn.Module]:
        return (self.vae,)

    def with_read_out(self, trained: dict[str, nn.Module], channels: int) -> nn.ModuleDict:
        """What is trained, with a read-out of latents as ``channels`` maps where the recipe asks for one."""
        self.read_out: nn.Module | None = None
        if self._recipe.read_out:
            trained["read_out"] = self.read_out = read_out(self.vae.config.latent_channels, channels)
        return nn.ModuleDict(trained)

    def judged(
        self, decoded: dict[str, Tensor], told: dict[str, Tensor] | None, share: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss by the recipe's weights, and all metrics by name.

        Args:
            decoded: losses of what was decoded.
            told: the same ones of the read-out, where there is one.
            share: of the batch that was decoded; beside those of all, the noisier losses of a few count so much less.
        """

        def weighted(losses: dict[str, Tensor]) -> Tensor:
            return torch.stack(
                [getattr(self._recipe, f"{name}_weight") * value for name, value in losses.items()]
            ).sum()

        if told is None:
            return weighted(decoded), decoded
        named = {f"told_{name}": value for name, value in told.items()}
        return share * weighted(decoded) + weighted(told), decoded | named

    def encode(self, images: Tensor) -> Tensor:
        """Scaled latents (posterior mode) of images in [0, 1], without gradient."""
        with torch.no_grad():
            return encode_moments(self.vae, images)[0] * self.vae.config.scaling_factor

    def encode_photo(self, images: Tensor) -> Tensor:
        """Scaled latents of photographs in [0, 1]; with gradient where their encoder is trained."""
        if self.photo_encoder is None:
            return self.encode(images)
        return encode_moments(self.photo_encoder, images)[0] * self.vae.config.scaling_factor

    def decoded(self, decoder: nn.Module, latents: Tensor) -> Tensor:
        """A decoder's output (B, 3, 8h, 8w) of scaled latents, with gradient."""
        return decoder(self.vae.post_quant_conv(latents / self.vae.config.scaling_factor)).float()

    def context(self, prompt: str, count: int) -> Tensor:
        """Embedding (count, tokens, width) of a prompt."""
        return self.contexts[prompt].to(self.device).expand(count, -1, -1)

    def held_out(self, size: tuple[int, int], canvas: int | None) -> list[dict[str, Tensor]]:
        """Whole, unaugmented pictures of scenes that training never sees."""
        if self._held is None:
            world = RenderedWorld(HELD_OUT_SEED, HELD_OUT, size[::-1])
            plain = Augmentation(whole=1.0, uneven=0, flip=False, bands=0, photometric=0)
            self._held = [
                prepared(world[i], size, canvas, plain, np.random.default_rng(i)) for i in range(HELD_OUT)
            ]
        return self._held

    def write_shared(self, folder: Path, config: DMCalibConfig) -> None:
        """The parts of a folder that both tasks' exports have, and what ``init`` has of the other's."""
        export_component(self.vae, folder / "vae")
        prompts = list(dict.fromkeys(prompt_of(domain) for domain in DOMAINS))
        with atomic_path(folder / EMBEDDINGS) as temporary:
            self.contexts.save(temporary, prompts)
        for other in ("calib", "depth_safe"):
            if (self.init / other).is_dir() and not (folder / other).exists():
                shutil.copytree(self.init / other, folder / other)
        atomic_write_json(folder / INDEX, {"_class_name": "DMCalib", **asdict(replace(config, base=None))})

    @property
    def goes_on(self) -> bool:
        """Whether ``init`` holds DM-Calib already, rather than a prior."""
        return (self.init / "calib").is_dir() or (self.init / "depth_safe").is_dir()

    def earlier_config(self) -> DMCalibConfig:
        """The configuration of the export that this run goes on from, else the published one."""
        return DMCalibConfig.read(self.init) if self.goes_on else DMCalibConfig()

    @override
    def describe(self) -> dict[str, Any]:
        names = ("vae", "unet", "text_encoder", *CALIBRATION_FOLDERS, *DEPTH_FOLDERS)
        init = checksums(self.init, tuple(dict.fromkeys(names)))
        return describe_run(self.options.preset, self._recipe, self.source, init)


# Calibration --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CalibrationRecipe:
    """Sizes and training of the calibration UNet.

    Args:
        canvas: side of the square canvas.
        sizes: (width, height) of the pictures on it; batches take turns.
        batch_size: photographs per step.
        lr: peak learning rate.
        unet: shape of a new UNet; None takes the prior's.
        one_step: train a single pass at t = 999 from zeros instead of denoising.
        train_decoder: give Camera Images a decoder of their own, trained along.
        train_encoder: give photographs an encoder of their own, trained along (not published; see the module).
        pixel_weight, latent_weight, focal_weight: of the one-step losses; a decoder of its own can do without the
            second, and is then free in what its latents mean.
        pixel_share: share of a batch that is decoded for the losses that need pixels; decoding is what costs most.
        read_out: judge the latents of all by the camera that a few convolutions tell of them, too; they are trained
            along and left behind.
        plan: augmentation.
        world: (height, width) of scenes that are rendered when there is no cache.
        warmup, ema: of the loop.
    """

    canvas: int
    sizes: tuple[tuple[int, int], ...]
    batch_size: int
    lr: float
    unet: UNetShape | None = None
    one_step: bool = False
    train_decoder: bool = False
    train_encoder: bool = False
    pixel_weight: float = 1.0
    latent_weight: float = 0.1
    focal_weight: float = 0.5
    pixel_share: float = 1.0
    read_out: bool = False
    plan: Augmentation = Augmentation()
    world: tuple[int, int] = (768, 1024)
    warmup: int = 1000
    ema: float = 0.0


MINI_CALIBRATION = CalibrationRecipe(
    canvas=96,
    sizes=((96, 72), (96, 96), (96, 64), (72, 96), (96, 32)),
    batch_size=12,
    lr=1e-3,
    unet=replace(MINI_SHAPE, attends=(False, False, True)),
    one_step=True,
    train_decoder=True,
    latent_weight=0.0,
    focal_weight=1.0,
    # nearly all whole photographs: were many cut, cameras would come out too narrow
    plan=Augmentation(zoom=(1.0, 1.4), whole=0.95, uneven=0.1, bands=0.05, photometric=0.8),
    world=(120, 160),
    warmup=100,
    ema=0.998,
)
FINE_CALIBRATION = replace(
    MINI_CALIBRATION,
    canvas=144,
    sizes=((144, 112), (144, 144), (144, 96), (112, 144), (144, 48)),
    batch_size=6,
)
CALIBRATION_PRESETS = {
    "mini": MINI_CALIBRATION,
    # last leg of the mini: more of each photograph, from another's export
    "mini-fine": FINE_CALIBRATION,
    # decoding makes up two thirds of a step: without it three times as many photographs in the same time
    "mini-latents": replace(MINI_CALIBRATION, batch_size=16, pixel_share=1 / 16, read_out=True),
    "mini-latents-fine": replace(FINE_CALIBRATION, batch_size=12, pixel_share=1 / 12, read_out=True),
    # As published: batch 196 in all (24 or 25 on each of 8 GPUs), no average of weights.
    "full": CalibrationRecipe(
        canvas=768, sizes=((768, 576), (768, 512), (768, 432), (576, 768)), batch_size=24, lr=3e-5
    ),
    "full-one-step": CalibrationRecipe(
        canvas=768,
        sizes=((768, 576), (768, 512), (768, 432), (576, 768)),
        batch_size=24,
        lr=3e-5,
        one_step=True,
    ),
}


class CalibrationTask(_DMCalibTask):
    """The calibration UNet.

    Args:
        recipe: sizes and training.
        source: images with intrinsics.
        options: what the person set; ``init`` holds ``vae`` and either a text encoder or embeddings, and ``unet`` or
            an earlier ``calib``.
    """

    name: ClassVar[str] = "dmcalib-calibration"
    presets: ClassVar[Mapping[str, Any]] = CALIBRATION_PRESETS

    def __init__(self, recipe: CalibrationRecipe, source: SampleSource, options: TaskOptions) -> None:
        if options.batch_size:
            recipe = replace(recipe, batch_size=options.batch_size)
        self.batch_size = recipe.batch_size
        super().__init__(recipe, source, options)

    @override
    def build(self) -> nn.Module:
        r = self._recipe
        self.unet = self.make_unet(("calib", "calib/unet", "calib2"), r.canvas, 1, r.one_step)
        trained: dict[str, nn.Module] = {"unet": self.unet}
        self.decoder: nn.Module | None = None
        if r.train_decoder:
            trained["decoder"] = self.decoder = read_decoder(self.vae, self.init / "calib")
        if r.train_encoder:
            trained["encoder"] = self.photo_encoder = read_encoder(self.vae, self.init / "calib")
        return self.with_read_out(trained, 2)

    @override
    def batches(self) -> Batches:
        r = self._recipe
        members = [
            CameraBatches(self.source, r.batch_size, size, r.canvas, r.plan, self.options.seed + 7919 * i)
            for i, size in enumerate(r.sizes)
        ]
        return TurnTaking(members)

    @override
    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        r = self._recipe
        image = self.encode_photo(batch["image"])
        if not r.one_step:
            return self._denoising_loss(image, self.encode((batch["camera"] + 1) / 2), generator), {}
        latents = self.one_step(image)
        count = max(1, round(r.pixel_share * len(latents)))
        decoded, rows = latents[:count], torch.arange(len(latents), device=latents.device)[:count]
        metrics: dict[str, Tensor] = {}
        loss: Tensor = latents.new_zeros(())
        if r.latent_weight:
            target = self.encode((batch["camera"] + 1) / 2)
            metrics["latent"] = (latents - target).square().mean()
            loss = r.latent_weight * metrics["latent"]
            if self.decoder is not None:
                # A decoder of its own has to learn what the latents of a Camera Image mean: from true ones, too.
                decoded = torch.cat([decoded, target[-count:]])
                rows = torch.cat([rows, rows + len(latents) - count])
        picture = self.decoded(self.decoder or self.vae.decoder, decoded)
        losses = picture_losses(picture, batch["camera"][rows], batch["mask"][rows])
        told_losses = None
        if self.read_out is not None:
            told = self.read_out(latents).float()
            camera, mask = at_cells(batch["camera"][:, :2], told), at_cells(batch["mask"], told)
            told_losses = picture_losses(told, camera, mask)
        judged, more = self.judged(losses, told_losses, count / len(latents))
        metrics |= more
        return loss + judged, {name: value.detach() for name, value in metrics.items()}

    def _denoising_loss(self, image: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        """Published: mean squared error of v under multi-resolution noise."""
        steps = torch.randint(0, TRAIN_STEPS, (len(target),), generator=generator)
        drawn = multi_resolution_noise(target.shape, generator, target.device)
        noisy = add_noise(target, drawn, steps)
        out = self.unet(
            torch.cat([noisy, image], dim=1), steps.to(target.device), self.context("", len(target))
        ).sample.float()
        return F.mse_loss(out, training_target(target, drawn, steps, PREDICTION))

    def one_step(self, image_latents: Tensor) -> Tensor:
        """Camera latents from a single pass at t = 999 that starts from zeros."""
        start = torch.zeros_like(image_latents)
        inputs = torch.cat([start, image_latents], dim=1)
        out = self.unet(inputs, LAST_STEP, self.context("", len(start))).sample.float()
        return to_x0(out, start, LAST_STEP, PREDICTION)

    def predict(self, images: Tensor, seed: int = 0) -> Tensor:
        """Camera Images (B, 3, S, S) in [-1, 1] of padded photographs, as inference makes them (few steps)."""
        from vision3d.backbone.schedule import ddim_timesteps

        latents = self.encode_photo(images)
        if self._recipe.one_step:
            found = self.one_step(latents)
        else:
            found = noise(latents.shape, torch.Generator().manual_seed(seed), latents.device)
            steps = ddim_timesteps(4, spacing="trailing")
            for i, t in enumerate(int(s) for s in steps):
                out = self.unet(
                    torch.cat([found, latents], 1), t, self.context("", len(found))
                ).sample.float()
                x0 = to_x0(out, found, t, PREDICTION)
                if i + 1 < len(steps):
                    alpha, sigma = alpha_sigma(t, found)
                    found = add_noise(x0, sigma * found + alpha * out, int(steps[i + 1]))
                else:
                    found = x0
        return self.decoded(self.decoder or self.vae.decoder, found)

    @override
    def evaluate(self, step: int) -> dict[str, float]:
        size = self._recipe.sizes[0]
        held = self.held_out(size, self._recipe.canvas)
        place = Canvas.fit(size[1], size[0], self._recipe.canvas, self._recipe.canvas)
        errors, truths, focal = [], [], []
        for start in range(0, len(held), 16):
            part = held[start : start + 16]
            pictures = self.predict(torch.stack([h["image"] for h in part]).to(self.device)).cpu()
            for example, picture in zip(
                part, place.crop(pictures / 2 + 0.5).clamp(0, 1).numpy(), strict=True
            ):
                fx = float(example["focal"][0])
                cx = float(example["centre"][0]) - place.left
                truth = Intrinsics(fx, fx, cx, size[1] / 2, *size).fov_x
                truths.append(truth)
                try:
                    camera = decode_intrinsics(picture).intrinsics
                except Vision3DError:
                    errors.append(truth)  # nothing was read: as wrong as an infinite focal length
                    focal.append(1.0)
                    continue
                errors.append(abs(camera.fov_x - truth))
                focal.append(abs(camera.fx / fx - 1))
        constant = float(np.median(np.abs(np.array(truths) - np.median(truths))))
        error = float(np.median(errors))
        return {
            "fov_error": error,
            "fov_ratio": error / constant,
            "focal_error": float(np.median(focal)),
        }

    @override
    def images(self, step: int) -> dict[str, Tensor]:
        held = self.held_out(self._recipe.sizes[0], self._recipe.canvas)[:8]
        images, targets = (torch.stack([h[name] for h in held]) for name in ("image", "camera"))
        predicted = self.predict(images.to(self.device)).cpu()
        return {"camera": torch.cat([images, predicted / 2 + 0.5, targets / 2 + 0.5]).clamp(0, 1)}

    @override
    def export(self, folder: Path) -> None:
        r = self._recipe
        export_component(self.unet, folder / "calib")
        if self.decoder is not None:
            write_half(self.decoder, folder / "calib" / DECODER_FILES[0])
        if self.photo_encoder is not None:
            write_half(self.photo_encoder, folder / "calib" / ENCODER_FILE)
        config = replace(self.earlier_config(), max_size=r.canvas)
        own = DMCalibConfig()
        if r.one_step:
            config = replace(config, steps=1, ensemble=2, noise="zeros")
        elif config.noise == "zeros":  # went on from a network of one step
            config = replace(config, steps=own.steps, ensemble=own.ensemble, noise=own.noise)
        self.write_shared(folder, config)


def picture_losses(picture: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """L1 error ("pixel") and :func:`focal_loss` ("focal") of Camera Images (B, 2 or 3, H, W) within the mask.

    Outside the mask anything goes: padding is cut off before a camera is read.
    """
    error = (picture - target).abs() * mask[:, None]
    pixel = error.sum() / (picture.shape[1] * mask.sum()).clamp_min(1)
    return {"pixel": pixel, "focal": focal_loss(picture, mask, target)}


def focal_loss(picture: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    """How far the focal lengths that a Camera Image shows are off, as logarithms; capped at 1.

    Args:
        picture: (B, 2 or 3, H, W) in [-1, 1], predicted.
        mask: (B, H, W) bool, where there is a picture.
        target: (B, 2 or 3, H, W), the true one, whose clipped pixels are left out.

    Returns:
        Mean over images and both directions of the change of log(1 / f) by one Gauss-Newton step from the true camera
        towards the predicted angles, which is how cameras are decoded; it is linear in what is predicted. What is
        uncertain comes out at the median: an error relative to f would draw it towards long lenses.
    """
    inside = (mask & (target[:, :2].abs().amax(dim=1) < 1 - 2 * CLIPPED)).float().flatten(1)
    scale = picture.new_tensor([(AZIMUTH[1] - AZIMUTH[0]), (POLAR[0] - POLAR[1])]) * (math.pi / 2)
    theta, psi = (target[:, :2].float() * scale[:, None, None]).flatten(2).unbind(1)
    off = ((picture[:, :2].clamp(-1.1, 1.1) - target[:, :2]) * scale[:, None, None]).flatten(2)
    # how the angles move with log(1 / fx), log(1 / fy) and the principal point
    x = torch.tan(theta)
    y = torch.tan(psi) * torch.sqrt(1 + x * x)
    norm = 1 + x * x
    by_x, by_y = -x * y / (norm.sqrt() * (norm + y * y)), norm.sqrt() / (norm + y * y)
    none = torch.zeros_like(x)
    slopes = torch.stack(
        [
            torch.stack([x / norm, none, 1 / norm, none], dim=1),
            torch.stack([by_x * x, by_y * y, by_x, by_y], dim=1),
        ],
        dim=2,
    )  # (B, 4, 2, H * W)
    with torch.autocast(slopes.device.type, enabled=False):  # in 16 bits it could not be solved
        slopes, off = slopes.float(), off.float()
        weighted = slopes * inside[:, None, None]
        normal = torch.einsum("bian,bjan->bij", weighted, slopes)
        normal = normal + 1e-4 * torch.diagonal_scatter(
            torch.zeros_like(normal), normal.diagonal(dim1=1, dim2=2) + 1e-3, dim1=1, dim2=2
        )
        moved = torch.linalg.solve(normal, torch.einsum("bian,ban->bi", weighted, off))
    return moved[:, :2].abs().clamp_max(1.0).mean()


# Depth --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DepthRecipe:
    """Sizes and training of the depth UNet and its decoder.

    Args:
        sizes: (width, height, photographs) of the batches that take turns; multiples of 8, no padding.
        lr: peak learning rate.
        unet: shape of a new UNet; None takes the prior's.
        ranges: metres at the end of the decoder's output, by domain.
        domain: that the weights take by default.
        domain_share: share of the photographs that are trained with their own domain's prompt and range; the others
            with the empty prompt.
        l1_weight: of the L1 error of the decoder's output (relative to its limit).
        log_weight: of the error of the logarithm of depth.
        relative_weight: of the error relative to the true depth, AbsRel as it is evaluated: too far costs more than too
            near, so that what is uncertain comes out nearer.
        gradient_weight: of the gradients of the logarithm of depth.
        camera_noise: standard deviation of the logarithm of the focal length that the network is shown: at inference
            it is an estimate.
        scale_10: let the output span [-10, 10].
        train_encoder: give photographs an encoder of their own, trained along (not published; see the module).
        pixel_share, read_out: as for :class:`CalibrationRecipe`; the read-out tells the logarithm of depth.
        first_depth: in metres, what an untrained decoder of a new network says.
        plan: augmentation.
        max_size: longest side at which photographs are processed with these weights.
        world: (height, width) of scenes that are rendered when there is no cache.
        warmup, ema: of the loop.
    """

    sizes: tuple[tuple[int, int, int], ...]
    lr: float
    unet: UNetShape | None = None
    ranges: dict[str, float] = field(default_factory=lambda: dict(DMCalibConfig().ranges))
    domain: str = "outdoor"
    domain_share: float = 1.0
    l1_weight: float = 1.0
    log_weight: float = 0.0
    relative_weight: float = 0.0
    gradient_weight: float = 0.0
    camera_noise: float = 0.0
    scale_10: bool = True
    train_encoder: bool = False
    pixel_share: float = 1.0
    read_out: bool = False
    first_depth: float | None = None
    plan: Augmentation = Augmentation(zoom=(1.0, 1.2), uneven=0.0)
    max_size: int = 768
    world: tuple[int, int] = (768, 1024)
    warmup: int = 1000
    ema: float = 0.0


MINI_DEPTH = DepthRecipe(
    sizes=((112, 88, 12), (112, 112, 12), (112, 80, 12), (88, 112, 12), (112, 40, 24)),
    lr=1.5e-3,
    unet=MINI_SHAPE,
    domain="any",
    domain_share=0.25,
    l1_weight=0.1,
    log_weight=0.25,
    relative_weight=1.0,
    gradient_weight=0.1,
    camera_noise=0.35,
    first_depth=5.0,
    plan=Augmentation(zoom=(1.0, 1.4), whole=0.8, uneven=0.0, bands=0.0, photometric=0.8),
    max_size=112,
    world=(120, 160),
    warmup=100,
    ema=0.998,
)
DEPTH_PRESETS = {
    "mini": MINI_DEPTH,
    # as for calibration
    "mini-latents": replace(
        MINI_DEPTH,
        sizes=tuple((width, height, count * 4 // 3) for width, height, count in MINI_DEPTH.sizes),
        pixel_share=1 / 16,
        read_out=True,
    ),
    # As published: batch 96 in all (12 on each of 8 GPUs).
    "full": DepthRecipe(sizes=((768, 576, 12), (768, 432, 12), (768, 768, 12)), lr=3e-5),
}


class DepthTask(_DMCalibTask):
    """The depth UNet and its decoder.

    Args:
        recipe: sizes and training.
        source: images with depth and intrinsics.
        options: what the person set; ``init`` as for :class:`CalibrationTask`, whose export it may be: the exported
            folder then holds both.
    """

    name: ClassVar[str] = "dmcalib-depth"
    presets: ClassVar[Mapping[str, Any]] = DEPTH_PRESETS

    def __init__(self, recipe: DepthRecipe, source: SampleSource, options: TaskOptions) -> None:
        if options.batch_size:
            recipe = replace(recipe, sizes=tuple((w, h, options.batch_size) for w, h, _ in recipe.sizes))
        self.take_turns(count for _, _, count in recipe.sizes)
        super().__init__(recipe, source, options)

    @override
    def build(self) -> nn.Module:
        r = self._recipe
        self.unet: Any = self.make_unet(("depth_safe",), r.max_size, 0, True)
        decoder: Any = read_decoder(self.vae, self.init / "depth_safe")
        is_new = not (self.init / "depth_safe" / DECODER_FILES[0]).is_file()
        if is_new and r.first_depth is not None:
            with torch.no_grad():
                decoder.conv_out.bias.fill_(self.limit * (2 * r.first_depth / r.ranges[r.domain] - 1))
        self.decoder = decoder
        trained: dict[str, nn.Module] = {"unet": self.unet, "decoder": decoder}
        if r.train_encoder:
            trained["encoder"] = self.photo_encoder = read_encoder(self.vae, self.init / "depth_safe")
        return self.with_read_out(trained, 1)

    @property
    def limit(self) -> float:
        """Where the decoder's output ends."""
        return 10.0 if self._recipe.scale_10 else 1.0

    @override
    def batches(self) -> Batches:
        members = [
            CameraBatches(self.source, count, (w, h), None, self._recipe.plan, self.options.seed + 7919 * i)
            for i, (w, h, count) in enumerate(self._recipe.sizes)
        ]
        return TurnTaking(members)

    def latents(self, images: Tensor, camera_images: Tensor, domains: Sequence[str]) -> Tensor:
        """What the UNet makes of photographs and their Camera Images, each of its domain, (B, C, h / 8, w / 8)."""
        latents = torch.cat([self.encode_photo(images), self.encode((camera_images + 1) / 2)], dim=1)
        steps = torch.full((len(latents),), DEPTH_TIMESTEP, device=latents.device)
        contexts = [self.context(prompt_of(domain), 1)[0] for domain in domains]
        context = nn.utils.rnn.pad_sequence(contexts, batch_first=True)
        lengths = torch.tensor([len(c) for c in contexts], device=context.device)
        words = torch.arange(context.shape[1], device=context.device) < lengths[:, None]
        return self.unet(latents, steps, context, encoder_attention_mask=words).sample

    def output(self, latents: Tensor) -> Tensor:
        """The decoder's output (B, h, w) for the UNet's latents, the mean of its channels."""
        return self.decoded(self.decoder, latents).mean(dim=1)

    @override
    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        r = self._recipe
        own = torch.rand(len(batch["image"]), generator=generator) < r.domain_share
        domains = [DOMAINS[i] for i in torch.where(own, batch["domain"].cpu(), DOMAINS.index("any"))]
        spans = batch["image"].new_tensor([r.ranges[domain] for domain in domains])[:, None, None]
        latents = self.latents(batch["image"], self._shown_cameras(batch, generator), domains)
        count = max(1, round(r.pixel_share * len(latents)))
        out = self.output(latents[:count])
        losses = self._losses(out, batch["depth"][:count], batch["mask"][:count], spans[:count])
        told_losses = None
        if self.read_out is not None:
            told = self.read_out(latents).float()[:, 0].clamp(-5, 8).exp()
            depth, mask = at_cells(batch["depth"], told), at_cells(batch["mask"], told)
            told_losses = self._losses(self.limit * (2 * told / spans - 1), depth, mask, spans)
        loss, metrics = self.judged(losses, told_losses, count / len(latents))
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _shown_cameras(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The Camera Images that the network is shown, of slightly wrong focal lengths."""
        r = self._recipe
        if not r.camera_noise:
            return batch["camera"]
        factors = torch.exp(r.camera_noise * torch.randn(len(batch["focal"]), generator=generator))
        height, width = batch["image"].shape[-2:]
        focal = batch["focal"].cpu() * factors[:, None]
        angles = ray_angles(focal, batch["centre"].cpu(), (height, width))
        shown = torch.cat([angle_channels(angles).to(batch["camera"]), batch["camera"][:, 2:]], dim=1)
        return torch.where(batch["mask"][:, None], shown, batch["camera"].new_tensor(-1.0))

    def _losses(self, out: Tensor, depth: Tensor, mask: Tensor, span: Tensor | float) -> dict[str, Tensor]:
        """Losses of a decoder's output (B, H, W) against metres; ``span``, a number or (B, 1, 1), ends the range."""
        known = mask & known_depth(depth)
        depth = torch.where(known, depth, depth.new_ones(())).clamp_max(span)
        target = self.limit * (2 * depth / span - 1)
        count = known.sum().clamp_min(1)
        l1 = ((out - target).abs() / self.limit * known).sum() / count
        # Below this floor the logarithm goes on as its tangent, so that negative depth is drawn back, too.
        metres, floor = (out / self.limit + 1) / 2 * span, 0.1
        log = torch.where(
            metres > floor,
            torch.log(metres.clamp_min(floor)),
            math.log(floor) + (metres - floor) / floor,
        )
        error = (log - torch.log(depth)).abs()
        relative = (metres - depth).abs() / depth
        losses = {"l1": l1} | {
            name: (values * known).sum() / count for name, values in (("log", error), ("relative", relative))
        }
        if self._recipe.gradient_weight:
            losses["gradient"] = gradient_matching_loss(log, torch.log(depth), known)
        return losses

    def predict(self, images: Tensor, camera_images: Tensor) -> Tensor:
        """Depth in metres (B, h, w) with the default domain's prompt."""
        r = self._recipe
        out = self.output(self.latents(images, camera_images, [r.domain] * len(images)))
        share = (out.clamp(-self.limit, self.limit) / self.limit + 1) / 2
        return share * r.ranges[r.domain]

    @override
    def evaluate(self, step: int) -> dict[str, float]:
        width, height, _ = self._recipe.sizes[0]
        held = self.held_out((width, height), None)
        errors, depths = [], []
        for start in range(0, len(held), 16):
            part = held[start : start + 16]
            images, cameras = (torch.stack([h[n] for h in part]).to(self.device) for n in ("image", "camera"))
            predicted = self.predict(images, cameras).cpu()
            for example, depth in zip(part, predicted, strict=True):
                known = known_depth(example["depth"])
                truth = example["depth"][known]
                depths.append(truth)
                errors.append(float(((depth[known] - truth).abs() / truth).mean()))
        constant = best_constant(depths)
        error = float(np.mean(errors))
        return {"absrel": error, "absrel_constant": constant, "absrel_ratio": error / constant}

    @override
    def images(self, step: int) -> dict[str, Tensor]:
        width, height, _ = self._recipe.sizes[0]
        held = self.held_out((width, height), None)[:8]
        images, cameras, depth = (torch.stack([h[n] for h in held]) for n in ("image", "camera", "depth"))
        predicted = self.predict(images.to(self.device), cameras.to(self.device)).cpu()
        maps = []
        for values in (predicted, depth):
            near = 1 / values.clamp(0.3, 1e4)
            maps.append((near / near.flatten(1).amax(1)[:, None, None])[:, None].expand(-1, 3, -1, -1))
        return {"depth": torch.cat([images, *maps])}

    @override
    def export(self, folder: Path) -> None:
        r = self._recipe
        export_component(self.unet, folder / "depth_safe")
        write_half(self.decoder, folder / "depth_safe" / DECODER_FILES[0])
        if self.photo_encoder is not None:
            write_half(self.photo_encoder, folder / "depth_safe" / ENCODER_FILE)
        config = replace(
            self.earlier_config(),
            depth_max_size=r.max_size,
            ranges=r.ranges,
            domain=r.domain,  # type: ignore[arg-type]
            scale_10=r.scale_10,
        )
        self.write_shared(folder, config)


def best_constant(depths: Sequence[Tensor]) -> float:
    """Mean AbsRel over images of the one depth, the same everywhere and for all, that makes it least."""
    candidates = np.geomspace(0.3, 60, 160)
    # |c - d| / d of many constants at once, on as many pixels as settle the third digit.
    scores = [
        np.abs(candidates[:, None] / d[:: max(1, len(d) // 512)][None] - 1).mean(axis=1)
        for d in (depth.numpy() for depth in depths)
        if len(d)
    ]
    return float(np.mean(scores, axis=0).min())
