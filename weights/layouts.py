"""What the tensors of each released checkpoint are called and how they are shaped.

A file is recognised by its names and shapes alone, so a foreign file is refused before anything is computed
with it, and the refusal says what the file is. Names are derived from the networks, not listed.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from vision3d.errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]
UNET, VAE, CONTROL, LABELLER = "model.diffusion_model.", "first_stage_model.", "control_model.", "labeller."
CAPTIONER = "backbone.feature_extractor."
DINO_MODELS = {
    f"dinov2_vit{size}14{registers}": f"DINOv2 ViT-{size.upper() if size != 'g' else 'g'}/14"
    + (" with registers" if registers else "")
    for size in "sblg"
    for registers in ("", "_reg")
} | {f"dino_vit{size}{patch}": f"DINO ViT-{size.upper()}/{patch}" for size in "sb" for patch in (8, 16)}


def tensor_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a weight file; of a safetensors file only the header is read.

    Raises:
        WeightsError: missing, damaged, or holding code.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length)) if 0 < length < 1 << 28 else None
            return {k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"}  # type: ignore[union-attr]
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise WeightsError(f"{path}: damaged safetensors file", "download it again") from error
    from vision3d.backbone.loading import open_checkpoint

    return {name: tuple(value.shape) for name, value in open_checkpoint(path).items()}


def check(path: Path, layout: str, name: str) -> None:
    """Makes sure that a file has the tensors of a layout.

    Args:
        path: weight file.
        layout: a key of :data:`LAYOUTS`.
        name: what the file is wanted for, in the refusal.

    Raises:
        WeightsError: it has not; the message says what it is, or how it differs.
    """
    shapes = tensor_shapes(path)
    fault = _fault(layout, shapes)
    if not fault:
        return
    found = identify(shapes)
    if found is not None and found != layout:
        fault = f"it is {LAYOUTS[found][0]}"
    raise WeightsError(
        f"{path.name}: this is not {LAYOUTS[layout][0]}, as {name} needs: {fault}",
        "give the file that the manifest names",
    )


def identify(shapes: Shapes) -> str | None:
    """Which layout these tensors have, or None."""
    return next((layout for layout in LAYOUTS if not _fault(layout, shapes)), None)


def describe(path: Path) -> str:
    """What a weight file is, for people.

    Raises:
        WeightsError: it is none of the released checkpoints.
    """
    shapes = tensor_shapes(path)
    found = identify(shapes)
    if found is None:
        examples = ", ".join(sorted(shapes)[:2])
        raise WeightsError(
            f"{path.name}: none of the released checkpoints; it holds {len(shapes)} tensors such as {examples}",
            "`vision3d weights list` shows what is known",
        )
    return LAYOUTS[found][0]


def _fault(layout: str, shapes: Shapes) -> str:
    """How tensors differ from a layout, or nothing."""
    try:
        LAYOUTS[layout][1](shapes)
    except WeightsError as error:
        return error.message.partition(": these are not its weights: ")[2] or error.message
    return ""


def _compare(expected: Shapes, given: Shapes) -> None:
    from vision3d.backbone.loading import check_keys

    check_keys(expected, given, "file")


def _refuse(reason: str) -> None:
    raise WeightsError(reason)


# Stable Diffusion -------------------------------------------------------------------------------------------


def _meta_shapes(kind: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    import diffusers

    from vision3d.backbone.loading import empty_weights

    with empty_weights():
        module = getattr(diffusers, kind)(**config)
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _unet(shapes: Shapes, context: int, inputs: int) -> None:
    """A complete UNet of published width in diffusers' names."""
    from vision3d.backbone.stable_diffusion import unet_config

    config = unet_config(shapes)
    facts = config["block_out_channels"], config["cross_attention_dim"], config["in_channels"]
    wanted = (320, 640, 1280, 1280), context, inputs
    if facts != wanted:
        _refuse(f"widths, text width and inputs are {facts} instead of {wanted}")
    _compare(_meta_shapes("UNet2DConditionModel", config), shapes)


def _direct25_normal(shapes: Shapes) -> None:
    """Direct2.5's normal UNet: that of Stable Diffusion 2.x and an embedding of twelve camera numbers."""
    camera = {
        "camera_embedding.linear_1.weight": (1280, 240),
        "camera_embedding.linear_1.bias": (1280,),
        "camera_embedding.linear_2.weight": (1280, 1280),
        "camera_embedding.linear_2.bias": (1280,),
    }
    if not any(name.startswith("camera_embedding.") for name in shapes):
        _refuse("it has no 'camera_embedding.*' tensors")
    _compare(camera, {k: tuple(v) for k, v in shapes.items() if k.startswith("camera_embedding.")})
    _unet({k: v for k, v in shapes.items() if not k.startswith("camera_embedding.")}, 1024, 4)


def _controlnet(shapes: Shapes) -> None:
    """StableNormal's image control branch; what it never uses of a ControlNet may be absent."""
    if "mid_block.resnets.0.conv1.weight" not in shapes or any(
        name.startswith("up_blocks.") for name in shapes
    ):
        _refuse("it is no encoder of a UNet with a middle block")
    expected = _meta_shapes(
        "ControlNetModel",
        {
            "block_out_channels": (320, 640, 1280, 1280),
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
    )
    dead = ("controlnet_cond_embedding.", "controlnet_down_blocks.", "controlnet_mid_block.")
    expected = {k: v for k, v in expected.items() if not k.startswith(dead) or k in shapes}
    _compare(expected, {k: tuple(v) for k, v in shapes.items()})


def _modern(name: str) -> str:
    """Autoencoder names of diffusers before 0.18 as they are now."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def _plain(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Projections of the autoencoder's attention as matrices, whichever way the file holds them."""
    return {
        name: shape[:2] if ".attentions." in name and len(shape) == 4 and shape[2:] == (1, 1) else shape
        for name, shape in ((_modern(name), tuple(shape)) for name, shape in shapes.items())
    }


def _vae(shapes: Shapes) -> None:
    from vision3d.backbone.stable_diffusion import vae_config

    modern = _plain(shapes)
    config = vae_config(modern)
    if config["block_out_channels"] != (128, 256, 512, 512):
        _refuse(f"its widths are {config['block_out_channels']}")
    _compare(_meta_shapes("AutoencoderKL", config), modern)


@lru_cache(maxsize=1)
def _published_vae() -> dict[str, tuple[int, ...]]:
    levels = 4
    config = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": 2,
        "latent_channels": 4,
    }
    return _meta_shapes("AutoencoderKL", config)


def _vae_decoder(shapes: Shapes) -> None:
    expected = {
        k.removeprefix("decoder."): v for k, v in _published_vae().items() if k.startswith("decoder.")
    }
    _compare(expected, {k.removeprefix("decoder."): v for k, v in _plain(shapes).items()})


def _ldm(shapes: Shapes, context: int) -> None:
    """UNet, autoencoder and text tower in one file with LDM's names."""
    from vision3d.backbone import keymap

    unet = {n: tuple(shapes[k]) for n, k in keymap.select(shapes, UNET, keymap.unet_key).items()}
    _unet(unet, context, 4)
    vae = {n: tuple(shapes[k]) for n, k in keymap.select(shapes, VAE, keymap.vae_key).items()}
    _vae(vae)
    if not any(name.startswith("cond_stage_model.") for name in shapes):
        _refuse("it has no text tower")
    if any(name.startswith((LABELLER, CONTROL)) for name in shapes):
        _refuse("it holds another network beside Stable Diffusion")


def _openclip_text(shapes: Shapes) -> None:
    tower = {name.removeprefix("text."): tuple(shape) for name, shape in shapes.items()}
    if tower.get("token_embedding.weight") != (49408, 1024):
        _refuse("it has no token_embedding.weight of 49408 x 1024")
    layers = {int(m[1]) for name in tower if (m := re.match(r"transformer\.resblocks\.(\d+)\.", name))}
    if layers != set(range(24)):
        _refuse(f"its text tower has {len(layers)} layers instead of 24")


# The systems ------------------------------------------------------------------------------------------------


def _primedepth(shapes: Shapes) -> None:
    from vision3d.pipelines.primedepth.checkpoint import checkpoint_shapes

    if not any(name.startswith(LABELLER) for name in shapes):
        _refuse("it has no 'labeller.*' tensors")
    expected = checkpoint_shapes()
    unused = (f"{VAE}decoder.", f"{VAE}post_quant_conv.")  # never run, so a file may leave it out
    expected = {k: v for k, v in expected.items() if not k.startswith(unused) or k in shapes}
    parts = (UNET, VAE, LABELLER)
    _compare(expected, {k: tuple(v) for k, v in shapes.items() if k.startswith(parts)})


@lru_cache(maxsize=1)
def sim2real_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a stage's checkpoint, without text tower and schedule buffers.

    The side encoder is the UNet's encoder and middle once more, with the parts of a ControlNet that are in the
    file but never used (zero convolutions, hint encoder), and the convolution that joins two latents.
    """
    from vision3d.backbone import keymap

    unet = _meta_shapes(
        "UNet2DConditionModel",
        {
            "block_out_channels": (320, 640, 1280, 1280),
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
    )
    ldm = {keymap.ldm_unet_key(name): shape for name, shape in unet.items()}
    shapes = {UNET + name: shape for name, shape in ldm.items()}
    encoder = ("time_embed.", "input_blocks.", "middle_block.")
    shapes |= {CONTROL + name: shape for name, shape in ldm.items() if name.startswith(encoder)}

    def convolution(name: str, inputs: int, outputs: int, kernel: int) -> None:
        shapes[f"{CONTROL}{name}.weight"] = (outputs, inputs, kernel, kernel)
        shapes[f"{CONTROL}{name}.bias"] = (outputs,)

    skips = [320, 320, 320, 320, 640, 640, 640, 1280, 1280, 1280, 1280, 1280]
    for i, width in enumerate(skips):
        convolution(f"zero_convs.{i}.0", width, width, 1)
    convolution("middle_block_out.0", 1280, 1280, 1)
    hint = [3, 16, 16, 32, 32, 96, 96, 256, 320]
    for i, (inputs, outputs) in enumerate(itertools.pairwise(hint)):
        convolution(f"input_hint_block.{2 * i}", inputs, outputs, 3)
    convolution("input_new_blocks.0", 8, 4, 3)
    for name, shape in _published_vae().items():
        as_conv = (*shape, 1, 1) if ".attentions." in name and len(shape) == 2 else shape
        shapes[VAE + keymap.ldm_vae_key(name)] = as_conv
    return shapes


def _sim2real(shapes: Shapes) -> None:
    if not any(name.startswith(CONTROL) for name in shapes):
        _refuse("it has no 'control_model.*' tensors")
    parts = (UNET, VAE, CONTROL)
    _compare(sim2real_shapes(), {k: tuple(v) for k, v in shapes.items() if k.startswith(parts)})


@lru_cache(maxsize=1)
def triplaneturbo_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of TriplaneTurbo's adapters and field networks (its published layout, rank 16).

    Adapters are numbered by position: attention of the UNet (down, up, then middle), the autoencoder's
    attention, convolutions of the UNet, those of the decoder (up, then middle), and its last convolution.
    """
    from vision3d.backbone.loading import empty_weights

    with empty_weights():
        import diffusers
        from torch import nn

        unet = diffusers.UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        )
        decoder = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        ).decoder

    rank = 16
    layers: list[dict[str, tuple[int, ...]]] = []

    def lora(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.down.weight": (rank, inputs), f"{name}.up.weight": (outputs, rank)}

    def projections(attention: Any, suffixes: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for part in ("q", "k", "v", "out"):
            linear = attention.to_out[0] if part == "out" else getattr(attention, f"to_{part}")
            for suffix in suffixes:
                found |= lora(f"to_{part}_{suffix}", linear.in_features, linear.out_features)
        return found

    planes = tuple(f"{plane}_lora_{role}" for role in ("geo", "tex") for plane in ("xy", "xz", "yz"))
    for part in (unet.down_blocks, unet.up_blocks, unet.mid_block):
        for name, module in part.named_modules():
            if name.endswith((".attn1", ".attn2")):
                layers.append(projections(module, planes if name.endswith("attn1") else ("lora",)))
    layers.append(projections(decoder.mid_block.attentions[0], ("lora",)))
    for part in (unet.down_blocks, unet.up_blocks, unet.mid_block, decoder.up_blocks, decoder.mid_block):
        for _, module in part.named_modules():
            if isinstance(module, nn.Conv2d):
                down = (rank, module.in_channels, *module.kernel_size)
                up = (module.out_channels, rank, 1, 1)
                layers.append({"down.weight": down, "up.weight": up})
    layers.append({"weight": (64, 128, 3, 3), "bias": (64,)})
    shapes: dict[str, tuple[int, ...]] = {"bbox": (2, 3)}
    for i, layer in enumerate(layers):
        shapes |= {f"space_generator.peft_layers.layers.{i}.{name}": s for name, s in layer.items()}
    for network, inputs, outputs in (("sdf", 32, 1), ("feature", 96, 3), ("deformation", 32, 3)):
        widths = (inputs, 64, 64, outputs)
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            shapes[f"{network}_network.layers.{2 * i}.weight"] = (b, a)
    return {f"geometry.{name}": shape for name, shape in shapes.items()}


def _triplaneturbo(shapes: Shapes) -> None:
    given = {k: tuple(v) for k, v in shapes.items() if k.startswith("geometry.")}
    if not given:
        _refuse("it has no 'geometry.*' tensors")
    _compare(triplaneturbo_shapes(), given)


def _captioner(shapes: Shapes) -> None:
    expected: dict[str, tuple[int, ...]] = {
        "clip_project.linear.weight": (768, 768),
        "clip_project.linear.bias": (768,),
        "clip_project.positional_embedding": (1, 77, 768),
        "alpha_cond": (1, 77, 768),
        "time_embed_project.linear.weight": (1280, 768),
        "time_embed_project.linear.bias": (1280,),
        "time_embed_project.positional_embedding": (1, 1, 1280),
        "alpha_cond_time_embed": (1280,),
    }
    expected = {CAPTIONER + name: shape for name, shape in expected.items()}
    _compare(expected, {k: tuple(v) for k, v in shapes.items() if k in expected})


def _dino(model: str) -> Callable[[Shapes], None]:
    def verdict(shapes: Shapes) -> None:
        import torch

        from vision3d.backbone.dino import load_dino

        if not any("cls_token" in name for name in shapes):
            _refuse("it has no cls_token")
        tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        load_dino(tensors, model=model, load=False)

    return verdict


LAYOUTS: dict[str, tuple[str, Callable[[Shapes], None]]] = {
    "primedepth": ("a PrimeDepth checkpoint", _primedepth),
    "sim2real": ("a Stable-Sim2Real stage", _sim2real),
    "triplaneturbo": ("a TriplaneTurbo checkpoint", _triplaneturbo),
    "odise": ("an ODISE checkpoint with the implicit captioner", _captioner),
    "ldm-sd1": ("a Stable Diffusion 1.x single file", lambda shapes: _ldm(shapes, 768)),
    "ldm-sd2": ("a Stable Diffusion 2.x single file", lambda shapes: _ldm(shapes, 1024)),
    "sd1-unet": ("a Stable Diffusion 1.x UNet", lambda shapes: _unet(shapes, 768, 4)),
    "sd2-unet": ("a Stable Diffusion 2.x UNet", lambda shapes: _unet(shapes, 1024, 4)),
    "sd2-unet-8ch": (
        "a Stable Diffusion 2.x UNet with eight input channels (DM-Calib, or Direct2.5's colour UNet)",
        lambda shapes: _unet(shapes, 1024, 8),
    ),
    "direct25-normal": ("Direct2.5's normal UNet", _direct25_normal),
    "sd2-controlnet": ("a Stable Diffusion 2.x ControlNet (StableNormal's image branch)", _controlnet),
    "sd-vae": ("a Stable Diffusion autoencoder", _vae),
    "sd-vae-decoder": ("the decoder of a Stable Diffusion autoencoder", _vae_decoder),
    "openclip-text": ("an OpenCLIP ViT-H/14 text tower", _openclip_text),
    **{model: (title, _dino(model)) for model, title in DINO_MODELS.items()},
}
"""What a layout is called, and what refuses tensors that have another one."""
