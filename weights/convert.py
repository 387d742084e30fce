"""Checkpoints from one published layout to another, tensor by tensor: nothing is computed, only renamed.

* A Stable Diffusion 1.x or 2.x file (LDM names) and a diffusers folder of safetensors.
* The PrimeDepth file and the folder of its pipeline.

A folder has no place for some of a file's tensors: schedule buffers, averaged weights, and of Stable Diffusion
2.x the last layer of the text tower, which conditions nothing. They are kept in ``ldm_rest.safetensors`` beside
the components, so that the file made from the folder is the file it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers import __version__ as diffusers_version
from torch import Tensor

from vision3d.backbone import keymap
from vision3d.backbone.loading import component_file, empty_weights, open_checkpoint, read_config
from vision3d.backbone.stable_diffusion import LDM_UNET, LDM_VAE, predicted_by, unet_config, vae_config
from vision3d.backbone.text import load_text_tower, open_clip_key, to_open_clip
from vision3d.backbone.tokeniser import Tokeniser
from vision3d.errors import InputError, WeightsError
from vision3d.io.files import atomic_path, staged_folder
from vision3d.paths import as_path

if TYPE_CHECKING:
    from transformers import CLIPTextModel

    from vision3d.pipelines.primedepth.checkpoint import PrimeDepthConfig

REST = "ldm_rest.safetensors"
INDEX = "model_index.json"
CLIP_TEXT, OPEN_CLIP_TEXT = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")


@dataclass
class Converted:
    """What was made.

    Attributes:
        layout: ``stable-diffusion`` or ``primedepth``.
        out: file or folder.
        components: the networks in it.
        tensors: how many it holds.
        aside: how many of them the folder layout has no place for.
    """

    layout: str
    out: str
    components: list[str] = field(default_factory=list)
    tensors: int = 0
    aside: int = 0

    def __str__(self) -> str:
        rest = f", {self.aside} of them in {REST}" if self.aside else ""
        return f"{self.out}: {', '.join(self.components)}; {self.tensors} tensors{rest}"


def convert(
    source: str | Path,
    out: str | Path,
    *,
    prediction: str | None = None,
    rest: bool = True,
    config: PrimeDepthConfig | None = None,
) -> Converted:
    """Makes a folder from a single file, or a single file from a folder.

    Args:
        source: checkpoint file (``.safetensors``, ``.ckpt``, ``.pt``, ``.pth``) or diffusers folder.
        out: what to make; the suffix says which kind of file.
        prediction: what the UNet predicts: ``epsilon``, ``v_prediction`` or ``sample``; None takes the velocity
            for Stable Diffusion 2.x files with "768" in their name, else the noise.
        rest: keep what the folder layout has no place for.
        config: sizes of a PrimeDepth file other than the published one.

    Raises:
        InputError: ``out`` is no folder or file that can be made from this.
        WeightsError: missing, damaged, or of another layout.
        OutputError: it cannot be written.
    """
    source, out = as_path(source), as_path(out)
    if source.is_dir():
        if out.suffix not in FILE_SUFFIXES:
            raise InputError(f"{out}: a folder becomes a file", f"give a name that ends {FILE_SUFFIXES[0]}")
        return _to_file(source, out)
    if out.suffix in FILE_SUFFIXES or out.is_file():
        raise InputError(f"{out}: a file becomes a folder", "give a folder's name")
    tensors = open_checkpoint(source)
    if any(name.startswith("labeller.") for name in tensors):
        return _primedepth_folder(source, tensors, out, rest, config)
    return _diffusion_folder(source, tensors, out, prediction, rest)


# To a folder ------------------------------------------------------------------------------------------------


@dataclass
class _Component:
    """One network on its way to its folder.

    Attributes:
        tensors: by their names there.
        used: their names in the file.
        save_config: writes its configuration into a folder.
        index: library and class, for ``model_index.json``.
        file: name of its weight file.
    """

    tensors: dict[str, Tensor]
    used: set[str]
    save_config: Callable[[Path], Any]
    index: tuple[str, str]
    file: str = "diffusion_pytorch_model.safetensors"


def _diffusion_folder(
    source: Path, tensors: Mapping[str, Tensor], out: Path, prediction: str | None, rest: bool
) -> Converted:
    parts: dict[str, _Component] = {}
    ends = [name for name in tensors if name.startswith(LDM_UNET) and name.endswith(".0.op.weight")]
    first = min((int(name.removeprefix(LDM_UNET).split(".")[1]) for name in ends), default=3)
    unet = keymap.select(tensors, LDM_UNET, lambda key: keymap.unet_key(key, first - 1))
    vae = keymap.select(tensors, LDM_VAE, keymap.vae_key)
    if not unet or not vae:
        raise _not_convertible(source, tensors)
    parts["vae"] = _diffusers_component(AutoencoderKL, vae_config, tensors, vae, keymap.as_linear)
    parts["unet"] = _diffusers_component(UNet2DConditionModel, unet_config, tensors, unet)
    is_sd2 = any(name.startswith(OPEN_CLIP_TEXT) for name in tensors)
    if any(name.startswith("cond_stage_model.") for name in tensors):
        parts["text_encoder"] = _text_component(tensors, without_last=is_sd2)
    predicts = prediction or predicted_by("sd2" if is_sd2 else "sd1", source.name)
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers_version,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    with staged_folder(out, last=INDEX) as folder:
        result = _write(folder, "stable-diffusion", out, parts, tensors, rest, index)
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(
            json.dumps({"_class_name": "DDIMScheduler", **_SCHEDULE, "prediction_type": predicts}, indent=2)
        )
        if _has_published_vocabulary(parts):
            _write_tokenizer(folder / "tokenizer", pad="!" if is_sd2 else "<|endoftext|>")
            index["tokenizer"] = ["transformers", "CLIPTokenizer"]
        (folder / INDEX).write_text(json.dumps(index, indent=2))
    return result


def _not_convertible(source: Path, tensors: Mapping[str, Tensor]) -> WeightsError:
    """Says what a file is, if it is known, and that there is nothing to make of it."""
    from vision3d.weights.layouts import LAYOUTS, identify

    found = identify({name: tuple(value.shape) for name, value in tensors.items()})
    if found is not None:
        return WeightsError(
            f"{source.name}: this is {LAYOUTS[found][0]}, which has no other layout", "it is used as it is"
        )
    examples = ", ".join(sorted(tensors)[:2])
    return WeightsError(
        f"{source.name}: no Stable Diffusion or PrimeDepth file; it holds {examples} ...",
        "give a single file in the LDM layout",
    )


_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def _primedepth_folder(
    source: Path,
    tensors: Mapping[str, Tensor],
    out: Path,
    rest: bool,
    config: PrimeDepthConfig | None,
) -> Converted:
    from vision3d.pipelines.primedepth.checkpoint import load_networks
    from vision3d.pipelines.primedepth.pipeline import PrimeDepth

    networks: dict[str, Any] = dict(load_networks(source, config, tensors=tensors))
    if networks["vae"].decoder is None:
        raise WeightsError(f"{source.name}: half of its autoencoder is left out", "use the file as it is")
    parts: dict[str, _Component] = {}
    for name, module in networks.items():
        library = "diffusers" if name in ("vae", "unet") else type(module).__module__
        stored = module._weight_source
        parts[name] = _Component(
            stored.read(), set(stored.names.values()), module.save_config, (library, type(module).__name__)
        )
    if any(name.startswith("cond_stage_model.") for name in tensors):
        parts["text_encoder"] = _text_component(tensors, without_last=False)
    index: dict[str, Any] = {
        "_class_name": PrimeDepth.__name__,
        "_diffusers_version": diffusers_version,
        "max_size": 1024,
    }
    with staged_folder(out, last=INDEX) as folder:
        result = _write(folder, "primedepth", out, parts, tensors, rest, index)
        if _has_published_vocabulary(parts):
            _write_tokenizer(folder / "tokenizer", pad="!")
            index["tokenizer"] = ["transformers", "CLIPTokenizer"]
        (folder / INDEX).write_text(json.dumps(index, indent=2))
    return result


def _diffusers_component(
    cls: Any,
    configure: Callable[[Mapping[str, tuple[int, ...]]], dict[str, Any]],
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    transform: Callable[[str, Tensor], Tensor] = lambda name, value: value,
) -> _Component:
    values = {name: transform(name, tensors[key]) for name, key in names.items()}
    with empty_weights():
        module = cls(**configure({name: tuple(tensors[key].shape) for name, key in names.items()}))
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    from vision3d.backbone.loading import check_keys

    check_keys(expected, {name: tuple(value.shape) for name, value in values.items()}, cls.__name__)
    return _Component(values, set(names.values()), module.save_config, ("diffusers", cls.__name__))


def _text_component(tensors: Mapping[str, Tensor], *, without_last: bool) -> _Component:
    """The text tower in transformers' names, as Stable Diffusion 2.x folders have it: without its last layer."""
    tower: CLIPTextModel = load_text_tower(
        {name: value for name, value in tensors.items() if name.startswith("cond_stage_model.")}
    )
    config, values, used = tower.config, {}, set()
    fused = any(name.startswith(OPEN_CLIP_TEXT) for name in tensors)
    plain = (
        CLIP_TEXT if any(name.startswith(CLIP_TEXT) for name in tensors) else "cond_stage_model.transformer."
    )
    last = f"encoder.layers.{config.num_hidden_layers - 1}."
    for name, value in tower.state_dict().items():
        bare = name.removeprefix("text_model.")
        if without_last and bare.startswith(last):
            continue
        values[f"text_model.{bare}"] = value
        used.add(OPEN_CLIP_TEXT + open_clip_key(bare) if fused else plain + bare)
    if without_last:
        config.num_hidden_layers -= 1
    config.architectures = ["CLIPTextModel"]
    return _Component(
        values, used, config.save_pretrained, ("transformers", "CLIPTextModel"), "model.safetensors"
    )


def _write(
    folder: Path,
    layout: str,
    out: Path,
    parts: Mapping[str, _Component],
    tensors: Mapping[str, Tensor],
    rest: bool,
    index: dict[str, Any],
) -> Converted:
    """Writes components and what is left of a file's tensors, and enters them in the index."""
    result = Converted(layout, str(out), list(parts))
    left = dict(tensors)
    for name, part in parts.items():
        (folder / name).mkdir()
        part.save_config(folder / name)
        _save(part.tensors, folder / name / part.file)
        index[name] = list(part.index)
        result.tensors += len(part.tensors)
        for key in part.used:
            left.pop(key, None)
    if rest and left:
        _save(left, folder / REST)
        result.aside = len(left)
        result.tensors += len(left)
    return result


_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file one tensor after the other.

    The tensors are views of a mapped file, which safetensors' own writer would have to be given as copies.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # keeps all aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        value = tensors[name]
        if value.dtype not in _DTYPES:
            raise WeightsError(f"{name}: tensors of type {value.dtype} are not written")
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {
            "dtype": _DTYPES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            value = tensors[name].detach().contiguous()
            if value.numel():
                file.write(value.reshape(-1).view(torch.uint8).numpy().data)


def _has_published_vocabulary(parts: Mapping[str, _Component]) -> bool:
    text = parts.get("text_encoder")
    return text is not None and text.tensors["text_model.embeddings.token_embedding.weight"].shape[0] == 49408


def _write_tokenizer(folder: Path, pad: str) -> None:
    """The published vocabulary as a tokenizer folder."""
    tokenizer = Tokeniser.clip().tokenizer
    before = tokenizer.pad_token
    try:
        tokenizer.pad_token = pad
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.pad_token = before
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if not (folder / "vocab.json").is_file():
        (folder / "vocab.json").write_text(json.dumps(vocabulary["vocab"], ensure_ascii=False))
    if not (folder / "merges.txt").is_file():
        pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in vocabulary["merges"])
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]))


# To a file --------------------------------------------------------------------------------------------------


def _to_file(folder: Path, out: Path) -> Converted:
    if (folder / INDEX).is_file() and read_config(folder, INDEX).get("_class_name") == "PrimeDepth":
        layout, parts = "primedepth", dict(_primedepth_parts(folder))
    elif (folder / "unet").is_dir() and (folder / "vae").is_dir():
        layout, parts = "stable-diffusion", dict(_diffusion_parts(folder))
    else:
        raise WeightsError(
            f"{folder}: no folder whose single-file layout is published",
            "give a Stable Diffusion 1.x or 2.x or a PrimeDepth folder",
        )
    result = Converted(layout, str(out), list(parts))
    tensors: dict[str, Tensor] = {}
    for part in parts.values():
        tensors |= part
    if (folder / REST).is_file():
        left = {k: v for k, v in open_checkpoint(folder / REST).items() if k not in tensors}
        tensors |= left
        result.aside = len(left)
    result.tensors = len(tensors)
    with atomic_path(out) as temporary:
        if out.suffix == ".safetensors":
            _save(tensors, temporary)
        else:
            torch.save({"state_dict": {k: v.detach().contiguous() for k, v in tensors.items()}}, temporary)
    return result


def _diffusion_parts(folder: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    config = read_config(folder / "unet")
    blocks, attends = int(config.get("layers_per_block", 2)), keymap.attending(config)
    unet = open_checkpoint(component_file(folder / "unet"))
    yield (
        "unet",
        {LDM_UNET + _ldm(keymap.ldm_unet_key, name, blocks, attends): value for name, value in unet.items()},
    )
    vae = {_modern(k): v for k, v in open_checkpoint(component_file(folder / "vae")).items()}
    levels = len(read_config(folder / "vae").get("block_out_channels", (0,) * 4))
    yield (
        "vae",
        {
            LDM_VAE + _ldm(keymap.ldm_vae_key, name, levels): keymap.as_convolution(name, value)
            for name, value in vae.items()
        },
    )
    if (folder / "text_encoder").is_dir():
        yield "text_encoder", _text_tensors(folder, fused=bool(config.get("use_linear_projection")))


def _ldm(rename: Callable[..., str], name: str, *layout: object) -> str:
    try:
        return rename(name, *layout)
    except (ValueError, KeyError) as error:
        raise WeightsError(
            f"{name}: the single-file layout has no place for this tensor", "give Stable Diffusion 1.x or 2.x"
        ) from error


def _modern(name: str) -> str:
    """Autoencoder names of diffusers before 0.18 as they are now."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def _text_tensors(folder: Path, *, fused: bool) -> dict[str, Tensor]:
    tower = load_text_tower(folder / "text_encoder")
    if fused:
        return to_open_clip(tower, OPEN_CLIP_TEXT)
    return {CLIP_TEXT + n.removeprefix("text_model."): value for n, value in tower.state_dict().items()}


def _primedepth_parts(folder: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    from vision3d.pipelines.primedepth.checkpoint import checkpoint_key

    config = read_config(folder / "unet")
    for network in ("unet", "vae", "refiner", "depth_head", "segmentation_head"):
        if (folder / network).is_dir():
            as_conv = network == "vae" or network.endswith("_head")
            yield (
                network,
                {
                    checkpoint_key(network, name, config): (
                        keymap.as_convolution(name, value) if as_conv else value
                    )
                    for name, value in open_checkpoint(component_file(folder / network)).items()
                },
            )
    if (folder / "text_encoder").is_dir():
        yield "text_encoder", _text_tensors(folder, fused=True)
