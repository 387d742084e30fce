"""DINO's vision transformers, v1 and v2, with the published parameter names, at any image size and stride.

One network covers all published sizes; which one a file holds is read off its tensors. Hub ``.pth`` files
load as they are, transformers folders by renaming. What the networks return are tokens on a grid: of any
block, of its output or of its queries, keys or values, with or without the final norm.

Position tables are stretched by the published rule, scale factor (n + 0.1) / M instead of a target size; only
the models with registers use the size, with antialiasing. Off the native grid the two differ visibly, and
transformers' ``Dinov2Model`` uses the size for all: ``Dino.interpolation`` names the rule and belongs into
the key of every cached feature. What exceeds a multiple of the patch at the right and bottom is not seen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision3d.backbone.loading import (
    WeightSource,
    attach,
    check_keys,
    component_file,
    empty_weights,
    open_checkpoint,
    read_config,
)
from vision3d.errors import InputError, WeightsError

Facet = Literal["token", "query", "key", "value"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORM_EPS = 1e-6
"""Of every layer norm, in both published versions (transformers' configuration of v1 says 1e-12)."""


@dataclass(frozen=True)
class DinoConfig:
    """Sizes of one network.

    Attributes:
        width, depth, heads: of the transformer.
        patch: side of a patch in pixels.
        grid: side of the position table in patches.
        hidden: width inside the MLP.
        registers: number of register tokens.
        layer_scale, mask_token: whether the network has them (v2 does).
        gated: SwiGLU instead of an MLP (giant).
    """

    width: int
    depth: int
    heads: int
    patch: int
    grid: int
    hidden: int
    registers: int = 0
    layer_scale: bool = True
    mask_token: bool = True
    gated: bool = False

    @property
    def name(self) -> str:
        """The hub's name of this network, or ``custom``."""
        return next((name for name, config in MODELS.items() if config == self), "custom")


def _v1(width: int, heads: int, patch: int) -> DinoConfig:
    return DinoConfig(width, 12, heads, patch, 224 // patch, 4 * width, layer_scale=False, mask_token=False)


_V2 = {
    "s": DinoConfig(384, 12, 6, 14, 37, 1536),
    "b": DinoConfig(768, 12, 12, 14, 37, 3072),
    "l": DinoConfig(1024, 24, 16, 14, 37, 4096),
    "g": DinoConfig(1536, 40, 24, 14, 37, 4096, gated=True),
}
MODELS = {
    **{f"dinov2_vit{size}14": config for size, config in _V2.items()},
    **{f"dinov2_vit{size}14_reg": replace(config, registers=4) for size, config in _V2.items()},
    **{f"dino_vits{patch}": _v1(384, 6, patch) for patch in (8, 16)},
    **{f"dino_vitb{patch}": _v1(768, 12, patch) for patch in (8, 16)},
}
"""Published networks by their names in the hub."""


@dataclass(frozen=True)
class Request:
    """Tokens to read in a pass.

    Attributes:
        layer: block, counted from 0; negative from the end.
        facet: ``token``, the block's output, or the ``query``, ``key`` or ``value`` of its attention, whose
            channels are interleaved: channel = index within the head * heads + head.
        norm: apply the network's final norm (to tokens only).
    """

    layer: int = -1
    facet: Facet = "token"
    norm: bool = False


@dataclass
class GridTokens:
    """Tokens of a batch of images.

    Attributes:
        patches: ``(B, h * w, C)``, row by row; only those that were kept, where a pass kept some.
        prefix: ``(B, 1 + registers, C)``: class token, then registers.
        grid: (h, w).
        stride: pixels from one token to the next.
        patch: side of the patch that a token sees, in pixels.
    """

    patches: Tensor
    prefix: Tensor
    grid: tuple[int, int]
    stride: int
    patch: int

    @property
    def map(self) -> Tensor:
        """The patches as an image ``(B, C, h, w)``."""
        return self.patches.transpose(1, 2).unflatten(2, self.grid)

    @property
    def cls(self) -> Tensor:
        """The class tokens ``(B, C)``."""
        return self.prefix[:, 0]

    @property
    def all(self) -> Tensor:
        """Prefix and patches ``(B, 1 + registers + h * w, C)``."""
        return torch.cat([self.prefix, self.patches], dim=1)

    @property
    def offset(self) -> float:
        """Image coordinate of the first token's centre (pixel centres at + 0.5), the same for u and v."""
        return self.patch / 2


class Attention(nn.Module):
    """Multi-head self-attention with stacked projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values, each ``(B, heads, N, d)``, of normed tokens ``(B, N, C)``."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, N, C)`` to tokens."""
        return self.proj(F.scaled_dot_product_attention(*self.project(x)).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens."""
        return self.fc2(F.gelu(self.fc1(x)))


class GatedMlp(nn.Module):
    """SwiGLU: the first half of the inner layer, through SiLU, gates the second."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens."""
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        mlp = GatedMlp if config.gated else Mlp
        self.norm1 = nn.LayerNorm(config.width, NORM_EPS)
        self.attn = Attention(config.width, config.heads)
        self.ls1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, NORM_EPS)
        self.mlp = mlp(config.width, config.hidden)
        self.ls2 = LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, N, C)`` to tokens."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Patches to tokens, one convolution; its stride may be smaller than the patch."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor, stride: int) -> Tensor:
        """Pixels ``(B, 3, H, W)`` to ``(B, C, h, w)``."""
        return F.conv2d(x, self.proj.weight, self.proj.bias, stride)


class Dino(nn.Module):
    """A DINO v1 or v2 network.

    Args:
        config: its sizes; ``MODELS`` has the published ones.
    """

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2 + 1, width))
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, width))
        if config.mask_token:
            self.mask_token = nn.Parameter(
                torch.zeros(1, width)
            )  # for training; kept so that names are complete
        self.patch_embed = PatchEmbed(config.patch, width)
        self.blocks: Sequence[Block] = nn.ModuleList([Block(config) for _ in range(config.depth)])  # type: ignore[assignment]
        self.norm = nn.LayerNorm(width, NORM_EPS)

    @property
    def device(self) -> torch.device:
        """Where it is; diffusers' pipelines ask every component."""
        return self.pos_embed.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of its weights."""
        return self.pos_embed.dtype

    @property
    def interpolation(self) -> str:
        """The rule by which the position table is stretched, for cache keys."""
        return "size, antialias" if self.config.registers else "scale (n + 0.1) / M"

    def grid_of(self, height: int, width: int, stride: int | None = None) -> tuple[int, int]:
        """Tokens along each side of an image.

        Raises:
            InputError: the image is smaller than a patch, or the stride is not positive.
        """
        patch, stride = self.config.patch, self.config.patch if stride is None else stride
        if stride < 1 or min(height, width) < patch:
            raise InputError(
                f"an image of {width}x{height} with stride {stride} has no patch of {patch} pixels",
                "give a larger image or a positive stride",
            )
        return 1 + (height - patch) // stride, 1 + (width - patch) // stride

    def position_table(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings ``(1, 1 + h * w, C)`` for a token grid, class row first, in float32.

        Bicubic, by the published rule of the variant (see the module).
        """
        side, table = self.config.grid, self.pos_embed.float()
        if grid == (side, side):
            return table
        image = table[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        if self.config.registers:
            image = F.interpolate(image, size=grid, mode="bicubic", antialias=True)
        else:
            scale = [(n + 0.1) / side for n in grid]
            image = F.interpolate(image, scale_factor=scale, mode="bicubic")
        return torch.cat([table[:, :1], image.flatten(2).transpose(1, 2)], dim=1)

    def embed(self, pixels: Tensor, stride: int | None = None) -> tuple[Tensor, tuple[int, int]]:
        """Input tokens ``(B, 1 + registers + h * w, C)`` of normalised pixels, and their grid."""
        stride = self.config.patch if stride is None else stride
        grid = self.grid_of(pixels.shape[-2], pixels.shape[-1], stride)
        x = self.patch_embed(pixels.to(self.pos_embed.dtype), stride).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.position_table(grid).to(x)
        if self.config.registers:
            x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], dim=1)
        return x, grid

    def forward(
        self,
        pixels: Tensor,  # [B, 3, H, W], ImageNet-normalised
        requests: Sequence[Request] = (Request(norm=True),),
        stride: int | None = None,
        keep: Tensor | None = None,  # [B, M] indices of patches
    ) -> list[GridTokens]:
        """Tokens for each request, from one pass that ends at the last block that is needed.

        With ``keep`` the blocks see these patches alone, each at its place (Liu et al., "PatchDropout", 2022): for
        training, whose cost falls with them.

        Raises:
            InputError: no such layer or facet, or an image smaller than a patch.
        """
        wanted = [replace(r, layer=self._block(r)) for r in requests]
        last = max(r.layer for r in wanted)
        x, grid = self.embed(pixels, stride)
        special = 1 + self.config.registers
        if keep is not None:
            x = torch.cat([x[:, :special], x[:, special:].take_along_dim(keep[..., None], 1)], dim=1)
        found: dict[Request, Tensor] = {}
        for index, block in enumerate(self.blocks):
            here = [r for r in wanted if r.layer == index]
            if any(r.facet != "token" for r in here):
                projected = dict(
                    zip(("query", "key", "value"), block.attn.project(block.norm1(x)), strict=True)
                )
                found |= {r: interleave_heads(projected[r.facet]) for r in here if r.facet != "token"}
            if index < last or any(r.facet == "token" for r in here):
                x = block(x)
            found |= {r: self.norm(x) if r.norm else x for r in here if r.facet == "token"}
            if index == last:
                break
        patch = self.config.patch
        return [
            GridTokens(found[r][:, special:], found[r][:, :special], grid, stride or patch, patch)
            for r in wanted
        ]

    def _block(self, request: Request) -> int:
        depth = self.config.depth
        if not -depth <= request.layer < depth:
            raise InputError(f"no block {request.layer} in a network of {depth}", f"choose 0 to {depth - 1}")
        if request.facet not in ("token", "query", "key", "value"):
            raise InputError(f"no facet {request.facet!r}", "choose token, query, key or value")
        if request.norm and request.facet != "token":
            raise InputError(
                f"the final norm does not apply to a {request.facet}", "ask for the facet without it"
            )
        return request.layer % depth

    @torch.no_grad()
    def features(
        self,
        images: Tensor,  # [B, 3, H, W], RGB in [0, 1]
        *,
        layer: int = -1,
        facet: Facet = "token",
        norm: bool = False,
        stride: int | None = None,
        batch_size: int | None = None,
    ) -> GridTokens:
        """Tokens of images.

        Args:
            images: of one size, best a multiple of the patch.
            layer: block, counted from 0; negative from the end.
            facet: the block's output, or its queries, keys or values; see :class:`Request`.
            norm: apply the final norm.
            stride: pixels between tokens; smaller than the patch for a denser grid.
            batch_size: images per pass; None takes all at once.

        Raises:
            InputError: as :meth:`forward`.
        """
        device = self.pos_embed.device
        parts = [
            self(normalise(part.to(device)), [Request(layer, facet, norm)], stride)[0]
            for part in images.split(batch_size or len(images))
        ]
        if len(parts) == 1:
            return parts[0]
        return replace(
            parts[0],
            patches=torch.cat([p.patches for p in parts]),
            prefix=torch.cat([p.prefix for p in parts]),
        )

    @torch.no_grad()
    def saliency(
        self,
        images: Tensor,  # [B, 3, H, W], RGB in [0, 1]
        heads: Sequence[int] = (0, 2, 4, 5),
        stride: int | None = None,
    ) -> Tensor:
        """How much the class token attends to each patch in the last block, ``(B, h, w)`` from 0 to 1.

        The mean of some heads (of ViT-S/8, those that follow objects), scaled to the range of each image.
        """
        x, grid = self.embed(normalise(images.to(self.pos_embed.device)), stride)
        for block in self.blocks[:-1]:
            x = block(x)
        last = self.blocks[-1]
        q, k, _ = last.attn.project(last.norm1(x))
        scores = (q[:, :, :1] * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        attention = scores.float().softmax(-1)[:, list(heads), 0, 1 + self.config.registers :].mean(1)
        low, high = attention.aminmax(dim=1, keepdim=True)
        return ((attention - low) / (high - low)).unflatten(1, grid)


def normalise(images: Tensor) -> Tensor:
    """RGB in [0, 1] ``(B, 3, H, W)`` to ImageNet's zero mean and unit deviation, float32."""
    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.float() - mean) / std


def interleave_heads(x: Tensor) -> Tensor:
    """Vectors ``(B, heads, N, d)`` as ``(B, N, d * heads)``, channel = index in its head * heads + head."""
    return x.permute(0, 2, 3, 1).flatten(2)


def log_bins(features: Tensor) -> Tensor:
    """Descriptors with their surroundings, ``(B, C, h, w)`` to ``(B, 17 C, h, w)`` (hierarchy 2).

    Nine neighbours at distance 1 on the map itself, then eight at distance 3 on its 3 x 3 average (padding
    not counted), row by row, channels of one bin together; neighbours beyond the border are the border's.
    """
    height, width = features.shape[-2:]
    blurred = F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False)
    bins = []
    for level, reach in ((features, 1), (blurred, 3)):
        padded = F.pad(level, (reach,) * 4, mode="replicate")
        for dy in (0, reach, 2 * reach):
            for dx in (0, reach, 2 * reach):
                if reach == 1 or (dy, dx) != (reach, reach):
                    bins.append(padded[..., dy : dy + height, dx : dx + width])
    return torch.cat(bins, dim=1)


# Loading ------------------------------------------------------------------------------------------------


def load_dino(
    source: str | Path | Mapping[str, Tensor],
    *,
    model: str | None = None,
    heads: int | None = None,
    dtype: torch.dtype | None = None,
    load: bool = True,
) -> Dino:
    """A DINO network from a hub ``.pth`` file or a transformers folder or file; which one is read off it.

    Args:
        source: file or folder, or the tensors of one.
        model: the network that the task needs, by its hub name (``dinov2_vitb14``, ``dino_vits8``, ...).
        heads: attention heads; None takes them from ``config.json``, or one per 64 channels.
        dtype: floating dtype to load as; None keeps the file's.
        load: read the weights now; otherwise ``loading.load_weights`` does.

    Raises:
        WeightsError: no such file, not a DINO network, another one than ``model``, or tensors that are
            missing, unexpected or of another shape.
    """
    path = Path("given tensors") if isinstance(source, Mapping) else Path(source).expanduser()
    if path.is_dir():
        declared = read_config(path)
        heads = heads or declared.get("num_attention_heads")
        path = component_file(path)
    if model is not None and model not in MODELS:
        raise InputError(f"no DINO network {model!r}", f"choose one of {', '.join(MODELS)}")
    named = HubNames(source if isinstance(source, Mapping) else open_checkpoint(path))
    config = _config_from(named.shapes, heads, path)
    if model is not None and config != MODELS[model]:
        what = (
            config.name if config.name != "custom" else f"a network {config.width} wide, {config.depth} deep"
        )
        raise WeightsError(
            f"{path.name}: this is {what}, the task needs {model}", f"give the weights of {model}"
        )
    with empty_weights():
        network = Dino(config)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    check_keys(expected, named.shapes, f"{path.name} as DINO {config.name}")
    source_of = WeightSource(path, {n: n for n in expected}, None, dtype, f"DINO {config.name}", named)
    attach(network, source_of, load=load)
    return network


class HubNames(Mapping[str, Tensor]):
    """A checkpoint's tensors under the hub's names, whatever its layout; made when they are asked for.

    Args:
        tensors: of a hub file, of DINO's training checkpoints (``module.``, ``backbone.``, projection head),
            or of transformers' ``Dinov2Model``, ``Dinov2WithRegistersModel`` or ``ViTModel``.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._parts: dict[str, list[str]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Names and shapes, those of unknown tensors included."""
        rows: dict[str, dict[int, str]] = {}
        for key in tensors:
            name = re.sub(r"^(module\.|backbone\.|teacher\.|dinov2(_with_registers)?\.|vit\.)*", "", key)
            if re.match(r"head\.(mlp|last_layer)|pooler\.", name):
                continue
            name, part = _hub_name(name)
            rows.setdefault(name, {})[part] = key
        for name, keys in rows.items():
            self._parts[name] = [keys[i] for i in sorted(keys)]
            shapes = [tuple(tensors[key].shape) for key in self._parts[name]]
            height = sum(shape[0] for shape in shapes) if len(shapes) > 1 else None
            self.shapes[name] = shapes[0] if height is None else (height, *shapes[0][1:])

    def __getitem__(self, name: str) -> Tensor:
        parts = [self._tensors[key] for key in self._parts[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


_TRANSFORMERS_NAMES = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^layernorm\.", "norm."),
    (r"^(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.w3."),
)
# What the hub stacks and transformers keeps apart: queries, keys, values; gate and value of SwiGLU.
_STACKED = (
    (r"(.*)\.attention\.(?:attention\.)?(query|key|value|q_proj|k_proj|v_proj)\.(\w+)", "attn.qkv", "qkv"),
    (r"(.*)\.mlp\.(gate_proj|up_proj)\.(\w+)", "mlp.w12", "gu"),
)


def _hub_name(name: str) -> tuple[str, int]:
    """The hub's name of a tensor, and which part of it this is where transformers keeps its parts apart."""
    for theirs, ours in _TRANSFORMERS_NAMES:
        name = re.sub(theirs, ours, name)
    for pattern, stacked, order in _STACKED:
        if match := re.fullmatch(pattern, name):
            block = match[1].removesuffix(".attention")
            return f"{block}.{stacked}.{match[3]}", order.index(match[2][0])
    return name, 0


def _config_from(shapes: Mapping[str, tuple[int, ...]], heads: int | None, path: Path) -> DinoConfig:
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight")
    ranks = dict(zip(needed, (3, 3, 4, 1), strict=True))
    missing = [name for name in needed if len(shapes.get(name, ())) != ranks[name]]
    if missing:
        examples = ", ".join(sorted(shapes)[:2])
        raise WeightsError(
            f"{path.name}: not a DINO network (no {missing[0]}) but {examples} ...",
            "give a DINO or DINOv2 checkpoint, from the hub or from transformers",
        )
    width, patch = shapes["cls_token"][-1], shapes["patch_embed.proj.weight"][-1]
    rows = shapes["pos_embed"][1] - 1
    grid = math.isqrt(rows)
    heads = heads or max(1, width // 64)
    if grid * grid != rows or width % heads:
        raise WeightsError(
            f"{path.name}: no DINO network has a position table of {rows} patches, {heads} heads and "
            f"{width} channels",
            "give a DINO or DINOv2 checkpoint",
        )
    gated = "blocks.0.mlp.w12.weight" in shapes
    inner = shapes.get("blocks.0.mlp.w12.weight" if gated else "blocks.0.mlp.fc1.weight", (4 * width,))[0]
    return DinoConfig(
        width=width,
        depth=1 + max(int(m[1]) for n in shapes if (m := re.match(r"blocks\.(\d+)\.", n))),
        heads=heads,
        patch=patch,
        grid=grid,
        hidden=inner // 2 if gated else inner,
        registers=shapes.get("register_tokens", (1, 0))[1],
        layer_scale="blocks.0.ls1.gamma" in shapes,
        mask_token="mask_token" in shapes,
        gated=gated,
    )
