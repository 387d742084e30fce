"""Text towers and the embeddings of prompts.

A tower is transformers' ``CLIPTextModel``, whatever layout its weights lie in: a ``text_encoder/`` folder, an
LDM file of SD 1.x (``cond_stage_model.transformer.text_model.*``), or OpenCLIP's own names with fused
projections (``cond_stage_model.model.*`` in LDM files of SD 2.x). Prompts are few and constant, so embeddings
are kept on disk and a tower is read only for a prompt that was never embedded before.

Which layer conditions the UNet depends on the task: Stable Diffusion 1.x and PrimeDepth take the ``last``,
Stable Diffusion 2.x the ``penultimate``; the final norm is applied to either. The ``text_encoder/`` folders
of SD 2.x lack the 24th layer: their last layer *is* the penultimate, and the true last is not in them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from vision3d.backbone.loading import (
    WeightSource,
    attach,
    check_keys,
    component_file,
    empty_weights,
    load_weights,
    open_checkpoint,
    read_config,
    release_weights,
    tensor_checksum,
)
from vision3d.backbone.tokeniser import LENGTH, Tokeniser, tokenise
from vision3d.errors import InputError, OutputError, WeightsError
from vision3d.io.files import atomic_write_bytes
from vision3d.paths import cache_dir

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

__all__ = [
    "Layer",
    "TextEncoder",
    "Tokeniser",
    "encode",
    "has_text_tower",
    "load_text_tower",
    "to_open_clip",
    "tokenise",
    "tower_among",
]

Layer = Literal["last", "penultimate"]
FULL_DEPTH = {768: 12, 1024: 24, 1280: 32}
"""Layers of the published towers by their width: CLIP ViT-L/14, OpenCLIP ViT-H/14 and ViT-bigG/14."""
# What files hold beside the tower, or beside the part of it that conditions a UNet.
_UNUSED = re.compile(
    r"(text_projection|logit_scale|logit_bias|attn_mask|visual|vision_model|visual_projection)\b"
)
_PREFIXES = (
    "cond_stage_model.transformer.text_model.",
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
)
_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OPEN_CLIP_TOP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_THIRDS = ("q_proj", "k_proj", "v_proj")


def open_clip_key(name: str) -> str:
    """OpenCLIP's name of what holds a tensor of transformers' tower (or a third of it: q, k or v)."""
    for theirs, ours in _OPEN_CLIP_TOP.items():
        if name == ours:
            return theirs
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match:
        layer, part, kind = match.groups()
        if part.removeprefix("self_attn.") in _THIRDS:
            return f"transformer.resblocks.{layer}.attn.in_proj_{kind}"
        for theirs, ours in _OPEN_CLIP_LAYER.items():
            if part == ours:
                return f"transformer.resblocks.{layer}.{theirs}.{kind}"
    raise ValueError(f"no OpenCLIP name for {name!r}")


def to_open_clip(tower: CLIPTextModel, prefix: str = "") -> dict[str, Tensor]:
    """A tower's tensors in OpenCLIP's names and layout (queries, keys and values stacked)."""
    ours = {_bare(name): value for name, value in tower.state_dict().items()}
    result: dict[str, Tensor] = {}
    for name, value in ours.items():
        key = prefix + open_clip_key(name)
        if ".attn.in_proj_" not in key:
            result[key] = value
        elif key not in result:
            stem, _, kind = name.rpartition(".")
            parts = [ours[f"{stem.rpartition('.')[0]}.{third}.{kind}"] for third in _THIRDS]
            result[key] = torch.cat(parts)
    return result


def load_text_tower(
    source: str | Path | Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    heads: int | None = None,
    activation: str | None = None,
    load: bool = True,
) -> CLIPTextModel:
    """The text tower of a checkpoint, in eval mode, memory-mapped.

    Args:
        source: a ``text_encoder/`` folder or the pipeline folder around it, an LDM file, a file of an
            OpenCLIP or CLIP model, or the tensors of one.
        dtype: floating dtype to load as; None keeps the file's.
        heads: attention heads; None takes them from ``config.json``, or one per 64 channels.
        activation: ``gelu`` or ``quick_gelu``; None takes it from ``config.json``, or the exact one for
            OpenCLIP's layout and ``quick_gelu`` for CLIP's.
        load: read the weights now; otherwise ``loading.load_weights`` does when they are needed.

    Raises:
        WeightsError: no such file, no text tower in it, or tensors missing, unexpected or of another shape.
    """
    given_tensors = source if isinstance(source, Mapping) else None
    path = Path("given tensors") if isinstance(source, Mapping) else Path(source).expanduser()
    config: dict[str, Any] = {}
    if path.is_dir():
        path = path / "text_encoder" if (path / "text_encoder").is_dir() else path
        config = read_config(path)
        config = config.get("text_config", config)
        path = component_file(path)
    stored = open_checkpoint(path) if given_tensors is None else given_tensors
    prefix, fused = _layout(stored, path)
    given = {
        key[len(prefix) :]: tuple(value.shape)
        for key, value in stored.items()
        if key.startswith(prefix)
        and not _UNUSED.match(key[len(prefix) :])
        and not key.endswith("position_ids")
    }
    with empty_weights():
        tower = CLIPTextModel(_tower_config(given, fused, config, heads, activation, path))
    key_of = open_clip_key if fused else str
    names = {name: prefix + key_of(_bare(name)) for name in tower.state_dict()}
    expected = {}
    for name, value in tower.state_dict().items():
        shape = tuple(value.shape)
        triple = fused and _third_of(name) is not None
        expected[names[name]] = (3 * shape[0], *shape[1:]) if triple else shape
    check_keys(expected, {prefix + key: shape for key, shape in given.items()}, f"{path.name} as text tower")
    transform = _third if fused else None
    attach(tower, WeightSource(path, names, transform, dtype, "text tower", given_tensors), load=load)
    return tower


def has_text_tower(source: Path) -> bool:
    """Whether a checkpoint brings a text tower, right or damaged.

    Raises:
        WeightsError: a file that cannot be read.
    """
    return (source / "text_encoder").is_dir() if source.is_dir() else tower_among(open_checkpoint(source))


def tower_among(names: Iterable[str]) -> bool:
    """Whether tensors of a text tower are among those of a single file."""
    return any(name.startswith(_PREFIXES) for name in names)


def _bare(name: str) -> str:
    """Some releases of transformers put ``text_model.`` before the tower's names."""
    return name.removeprefix("text_model.")


def _third_of(name: str) -> int | None:
    match = re.search(r"\.self_attn\.(q_proj|k_proj|v_proj)\.", name)
    return _THIRDS.index(match[1]) if match else None


def _third(name: str, value: Tensor) -> Tensor:
    """The queries', keys' or values' third of OpenCLIP's stacked projection."""
    third = _third_of(name)
    return value if third is None else value.chunk(3)[third]


def _layout(tensors: Mapping[str, Tensor], path: Path) -> tuple[str, bool]:
    """What stands before the tower's names, and whether they are OpenCLIP's."""
    for prefix in (*_PREFIXES, "text_model.", ""):
        if prefix + "embeddings.token_embedding.weight" in tensors:
            return prefix, False
        if prefix + "token_embedding.weight" in tensors:
            return prefix, True
    examples = ", ".join(sorted(tensors)[:2])
    raise WeightsError(
        f"{path.name}: no text tower in this file but {examples} ...",
        "give a text_encoder folder, an LDM checkpoint with its text tower, or an OpenCLIP model",
    )


def _tower_config(
    shapes: Mapping[str, tuple[int, ...]],
    fused: bool,
    config: Mapping[str, Any],
    heads: int | None,
    activation: str | None,
    path: Path,
) -> CLIPTextConfig:
    """Configuration from shapes; what leaves no trace there (heads, activation, end id) from ``config``."""
    layer = "transformer.resblocks" if fused else "encoder.layers"
    names = {theirs if fused else ours: ours for theirs, ours in _OPEN_CLIP_TOP.items()}
    tokens, positions = list(names)[:2]
    inner = f"{layer}.0.mlp.{'c_fc' if fused else 'fc1'}.weight"
    for name in (tokens, positions, inner):
        if name not in shapes:
            raise WeightsError(f"{path.name}: the text tower lacks {name}", "get the complete checkpoint")
    vocabulary, width = shapes[tokens]
    depth = 1 + max(int(m[1]) for n in shapes if (m := re.match(rf"{re.escape(layer)}\.(\d+)\.", n)))
    heads = heads or config.get("num_attention_heads") or max(1, width // 64)
    if width % heads:
        raise WeightsError(f"{path.name}: a text tower {width} wide cannot have {heads} heads")
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shapes[inner][0],
        num_hidden_layers=depth,
        num_attention_heads=heads,
        max_position_embeddings=shapes[positions][0],
        hidden_act=activation or config.get("hidden_act") or ("gelu" if fused else "quick_gelu"),
        layer_norm_eps=config.get("layer_norm_eps", 1e-5),
        projection_dim=config.get("projection_dim", width),
        # The end token is the last of every CLIP vocabulary; configurations of old releases say 2 instead.
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=min(1, vocabulary - 1),
    )


def is_cut(tower: CLIPTextModel) -> bool:
    """Whether a tower was published without its last layer, so that its own last is the ``penultimate``."""
    full = FULL_DEPTH.get(tower.config.hidden_size)
    return full is not None and tower.config.num_hidden_layers == full - 1


@torch.no_grad()
def encode(
    tower: CLIPTextModel,
    ids: Tensor,  # [B, T] int64
    layer: Layer = "last",
) -> Tensor:
    """Token states ``(B, T, width)`` after ``layer`` and the final norm, in the tower's dtype.

    Raises:
        WeightsError: the last layer is asked of a tower that was published without it.
    """
    if layer not in ("last", "penultimate"):
        raise InputError(f"no text layer {layer!r}", "choose last or penultimate")
    cut = is_cut(tower)
    if cut and layer == "last":
        depth = tower.config.num_hidden_layers
        full = depth + 1
        raise WeightsError(
            f"this text tower has {depth} of {full} layers (as SD 2.x folders do), so its last layer is the "
            "penultimate one and the true last cannot be computed",
            f"give a tower with all {full} layers",
        )
    device = next(tower.parameters()).device
    ids = ids.to(device)
    if layer == "last" or cut:
        return tower(ids).last_hidden_state
    states = tower(ids, output_hidden_states=True).hidden_states[-2]
    return getattr(tower, "text_model", tower).final_layer_norm(states)


class TextEncoder:
    """Embeddings of prompts, from the cache on disk where they are, from the tower where not.

    Args:
        tower: the tower, or a function that loads it when the first unknown prompt comes. A tower from
            ``load_text_tower(..., load=False)`` is read at that moment, too.
        tokenizer: one of transformers', a :class:`Tokeniser`, a folder, or None for the published vocabulary.
        pad: padding id: 0 for OpenCLIP and SD 2, 49407 for SD 1; None takes the tokenizer's own.
        checksum: what identifies the tower's weights, or a function that finds it. Needed only with a
            function as ``tower``, which would otherwise be called to find it.
        dtype: in which a tower that ``tower`` loads is run. A tower given as such is run as it is.
        device: where the tower is run.
        cache: keep embeddings on disk, in ``$VISION3D_HOME`` or ``~/.cache/vision3d``.

    Attributes:
        loads: how often the tower was loaded.
    """

    def __init__(
        self,
        tower: CLIPTextModel | Callable[[], CLIPTextModel],
        tokenizer: CLIPTokenizer | Tokeniser | str | Path | None = None,
        *,
        pad: int | None = None,
        checksum: str | Callable[[], str] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        cache: bool = True,
    ) -> None:
        self._given: CLIPTextModel | None = None
        self._loader: Callable[[], CLIPTextModel] | None = None
        if isinstance(tower, nn.Module):
            self._given = cast(CLIPTextModel, tower)
        else:
            self._loader = tower
        self._tower: CLIPTextModel | None = None
        self.tokeniser = Tokeniser.wrap(tokenizer)
        self._pad, self._checksum, self._dtype, self._device = pad, checksum, dtype, device
        self._cache = cache
        self.loads = 0

    @classmethod
    def from_pretrained(cls, source: str | Path, *, pad: int | None = None, **options: Any) -> TextEncoder:
        """The tower and vocabulary of a checkpoint; nothing is read before the first unknown prompt.

        Args:
            source: as in :func:`load_text_tower`; a ``tokenizer/`` folder beside the tower is used.
            pad: padding id; None takes the folder's, or for files 0 with OpenCLIP's layout and 49407 with
                CLIP's.
            options: further arguments of the constructor.

        Raises:
            WeightsError: as :func:`load_text_tower`.
        """
        path = Path(source).expanduser()
        tower = load_text_tower(path, load=False, dtype=options.get("dtype", torch.float32))
        folders = [path / "tokenizer", path.parent / "tokenizer"] if path.is_dir() else []
        folder = next((f for f in folders if (f / "vocab.json").is_file()), None)
        if pad is None and folder is None:
            pad = 0 if tower.config.hidden_act == "gelu" else tower.config.vocab_size - 1
        return cls(tower, folder, pad=pad, **options)

    @property
    def pad(self) -> int:
        """The padding id."""
        return int(self.tokeniser.tokenizer.pad_token_id) if self._pad is None else self._pad

    def embed(self, prompts: str | Sequence[str], layer: Layer = "last") -> Tensor:
        """Embeddings of prompts.

        Args:
            prompts: one or more texts; empty ones are valid.
            layer: ``last`` or ``penultimate``, followed by the final norm.

        Returns:
            ``(B, 77, width)`` float32 on the CPU, one row per prompt.

        Raises:
            WeightsError: the tower cannot be loaded or has no such layer.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise InputError("no prompts to embed", "give at least one text; an empty one is valid")
        known: dict[str, Tensor] = {}
        files = {prompt: self._file(prompt, layer) for prompt in prompts} if self._cache else {}
        for prompt, file in files.items():
            cached = _read(file) if file is not None else None
            if cached is not None:
                known[prompt] = cached
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        if missing:
            ids, _ = self.tokeniser(missing, self._pad)
            states = encode(self.tower, ids, layer).float().cpu()
            for prompt, state in zip(missing, states, strict=True):
                known[prompt] = state.contiguous()
                file = files.get(prompt)
                if file is not None:
                    with suppress(OutputError):  # a cache that cannot be written costs time, not results
                        note = {"prompt": prompt, "layer": layer}
                        atomic_write_bytes(file, save({"embedding": known[prompt]}, metadata=note))
        return torch.stack([known[prompt] for prompt in prompts])

    @property
    def tower(self) -> CLIPTextModel:
        """The tower, loaded if it is not."""
        if self._tower is None:
            if self._given is not None:
                was_empty = any(p.is_meta for p in self._given.parameters())
                load_weights(self._given, self._device)
                self._tower = self._given
                self.loads += was_empty
            else:
                assert self._loader is not None
                loaded: nn.Module = self._loader()
                load_weights(loaded, self._device)
                self._tower = cast(CLIPTextModel, loaded.to(dtype=self._dtype)).eval().requires_grad_(False)
                self.loads += 1
        return self._tower

    def drop(self) -> None:
        """Lets the tower's memory go; it is loaded again if a new prompt needs it."""
        if self._given is not None:
            release_weights(self._given)
        self._tower = None

    @property
    def checksum(self) -> str:
        """What identifies the weights and the precision that they are run in."""
        if callable(self._checksum):
            self._checksum = self._checksum()
        if self._checksum is None:
            tower = self._given if self._given is not None else self.tower
            source: WeightSource | None = getattr(tower, "_weight_source", None)
            if source is not None and source.path.is_file():
                self._checksum = source.checksum()
            else:
                self._checksum = tensor_checksum(tower.state_dict() if source is None else source.read())
        return self._checksum

    def _precision(self) -> torch.dtype:
        """The dtype in which the tower computes, or would if it were loaded."""
        return self._dtype if self._given is None else next(self._given.parameters()).dtype

    def _file(self, prompt: str, layer: Layer) -> Path | None:
        parts = [
            self.checksum,
            self.tokeniser.identity,
            layer,
            self._pad,
            LENGTH,
            str(self._precision()),
            prompt,
        ]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        try:
            return cache_dir("text") / f"{digest}.safetensors"
        except OSError:
            return None


def _read(file: Path) -> Tensor | None:
    """A cached embedding; a damaged file is removed."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt", device="cpu") as archive:
            value = archive.get_tensor("embedding").clone()
        if value.ndim == 2 and bool(torch.isfinite(value).all()):
            return value
    except (SafetensorError, OSError, ValueError, KeyError):
        pass
    with suppress(OSError):
        file.unlink()
    return None
