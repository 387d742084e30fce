"""Released folders and our own, to networks.

Released are one-step folders (``unet``, ``controlnet``, ``vae`` and, in the prompted line, ``text_encoder`` and
``tokenizer``) and the refinement's (the same and ``dino_controlnet``), each with fp16 files. Ours holds both stages,
the second one's networks under ``refine_...``, and the DINO network. Scalars stand in ``model_index.json``.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.controlnets.controlnet import ControlNetModel
from torch import Tensor, nn
from transformers import CLIPTokenizer

from vision3d.backbone.dino import load_dino
from vision3d.backbone.loading import (
    WeightSource,
    attach,
    component_file,
    empty_weights,
    load_component,
    open_checkpoint,
    read_config,
)
from vision3d.backbone.text import load_text_tower
from vision3d.errors import WeightsError
from vision3d.pipelines.stablenormal.network import (
    IMAGE_BRANCH_UNUSED,
    SEMANTIC_BRANCH_UNUSED,
    ControlNetVAEModel,
    SemanticControlNet,
)
from vision3d.pipelines.stablenormal.origin import CLASS_NAME

EMBEDDING = "dino_controlnet_cond_embedding."
PROMPT_FREE_SINCE = 1.5
SCALARS: dict[str, Any] = {
    "line": "v0",
    "t_start": 401,
    "turbo_t_start": 0,
    "prompt": "",
    "refine_prompt": "The normal map",
    "default_resolution": 1024,
    "default_processing_resolution": 768,
    "default_denoising_steps": 10,
    "dino_side": 672,
}
"""What decides a result besides the networks, with the published values; ``model_index.json`` overrides them.

``line`` is "v0" (prompted, from noise) or "v1" (prompt-free, from the image latent). The published one-step entry
takes ``turbo_t_start`` and the two-stage one ``t_start``.
"""


def parse_version(name: str) -> float | None:
    """The number in a repository's name: ``yoso-normal-v1-8-1`` is 1.81, ``yoso-normal-v0-3`` is 0.3."""
    match = re.search(r"-v(\d+)-(\d+)(?:-(\d+))?(?:-(?:base|alpha|beta|rc\d+))?$", name)
    if match is None:
        return None
    major, minor, patch = (int(part or 0) for part in match.groups())
    return major + 0.1 * minor + 0.01 * patch


def line_of(folder: Path, index: Mapping[str, Any]) -> str:
    """``v0`` or ``v1``: as the index says, else by the version in a name, else by whether text parts are there."""
    if "line" in index:
        return str(index["line"])
    # diffusers notes where a pipeline came from when it was saved, which is older than the folder's own name
    noted = str(index.get("_name_or_path", "")).rstrip("/")
    for name in (folder.name, noted, *reversed(folder.parts[:-1])):
        version = parse_version(name.rpartition("/")[2])
        if version is not None:
            return "v0" if version < PROMPT_FREE_SINCE else "v1"
    return "v0" if (folder / "text_encoder").is_dir() else "v1"


@dataclass
class Loaded:
    """Networks of one folder.

    Attributes:
        networks: by the pipeline's names.
        scalars: of :data:`SCALARS`, where the folder says.
        refines: whether a second stage is among them.
    """

    networks: dict[str, Any] = field(default_factory=dict)
    scalars: dict[str, Any] = field(default_factory=dict)

    @property
    def refines(self) -> bool:
        """Whether there is a second stage."""
        return "refine_unet" in self.networks


def load_folder(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    semantic: bool = True,
    trust_remote_code: bool = False,
) -> Loaded:
    """The networks of a folder, bound to their weights (loaded at first use).

    Args:
        folder: released one-step or refinement folder, or one of ours.
        dtype: floating dtype to load as; the autoencoder takes float32 in place of 16 bits.
        semantic: load the semantic branch.
        trust_remote_code: run the branch's Python file in the folder instead of our reading of it.

    Raises:
        WeightsError: no such folder, parts missing, damaged, or of an unknown layout.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise WeightsError(f"{folder}: not a folder", "give a StableNormal folder")
    index = read_config(folder, "model_index.json")
    combined = index.get("_class_name") == CLASS_NAME
    second = not combined and (folder / "dino_controlnet").is_dir()
    loaded = Loaded()
    for stage in ("", "refine_") if combined else ("",):
        own = Path(f"{stage}unet")
        if stage and not (folder / own).is_dir():
            continue
        name = "refine_" if second else stage
        for part in ("unet", "controlnet", "vae"):
            place = folder / f"{stage}{part}"
            if not place.is_dir():
                if stage and part == "vae":
                    continue  # our folders keep one autoencoder if both stages have the same
                raise WeightsError(
                    f"{folder}: no {place.name} in this folder", "it is incomplete; get it again"
                )
            loaded.networks[f"{name}{part}"] = _load_part(part, place, dtype)
        if (folder / f"{stage}text_encoder").is_dir() and (folder / f"{stage}tokenizer").is_dir():
            loaded.networks[f"{name}text_encoder"] = load_text_tower(
                folder / f"{stage}text_encoder", dtype=dtype, load=False
            )
            loaded.networks[f"{name}tokenizer"] = CLIPTokenizer.from_pretrained(folder / f"{stage}tokenizer")
    if semantic and (folder / "dino_controlnet").is_dir():
        loaded.networks["dino_controlnet"] = load_semantic(
            folder, index, dtype=dtype, trust_remote_code=trust_remote_code
        )
    if semantic and (folder / "dino").is_dir():
        loaded.networks["dino"] = load_dino(folder / "dino", dtype=dtype, load=False)
    for name, value in index.items():
        if name in SCALARS and value is not None and not isinstance(value, (list, dict)):
            loaded.scalars[name] = value
    if second:
        # A released refinement's prompt is the second stage's.
        if "prompt" in loaded.scalars:
            loaded.scalars["refine_prompt"] = loaded.scalars.pop("prompt")
        loaded.scalars = {
            k: v
            for k, v in loaded.scalars.items()
            if k in ("refine_prompt", "default_denoising_steps", "default_processing_resolution")
        }
    else:
        loaded.scalars["line"] = line_of(folder, index)
    return loaded


def _load_part(part: str, place: Path, dtype: torch.dtype | None) -> nn.Module:
    if part == "controlnet":
        return load_image_branch(place, dtype=dtype)
    if part == "unet":
        return load_component(UNet2DConditionModel, place, dtype=dtype, load=False)
    return load_component(AutoencoderKL, place, dtype=dtype, load=False)


def image_branch_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those entries of a component's configuration that a ControlNet takes."""
    known = inspect.signature(ControlNetModel.__init__).parameters
    return {k: v for k, v in config.items() if k in known and k != "self"}


def load_image_branch(folder: Path, *, dtype: torch.dtype | None = None) -> ControlNetVAEModel:
    """The image branch of a folder; the tensors that are never applied may be there or not.

    Raises:
        WeightsError: other tensors are missing, unexpected or of another shape.
    """
    file = component_file(folder)
    tensors = open_checkpoint(file)
    with empty_weights():
        branch = ControlNetVAEModel(**image_branch_arguments(read_config(folder)))
    names = {name: name for name in tensors if not name.startswith(IMAGE_BRANCH_UNUSED)}
    attach(branch, WeightSource(file, names, dtype=dtype, label="image branch"), load=False)
    return branch


def semantic_arguments(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Arguments of :class:`SemanticControlNet` from a configuration and the tensors' shapes.

    The sizes of the embedding are read off the tensors, since what the released configuration calls them is not
    known.

    Raises:
        WeightsError: the embedding is not a chain of 3 x 3 convolutions under the names that we know.
    """
    parts = {name[len(EMBEDDING) :]: tuple(shapes[name]) for name in shapes if name.startswith(EMBEDDING)}
    middle = sorted(
        (n for n in parts if re.fullmatch(r"blocks\.\d+\.weight", n)), key=lambda n: int(n.split(".")[1])
    )
    chain = ["conv_in.weight", *middle, "conv_out.weight"]
    kernels = [parts.get(n, ()) for n in chain]
    fits = all(len(k) == 4 and tuple(k[2:]) == (3, 3) for k in kernels) and all(
        a[0] == b[1] for a, b in pairwise(kernels)
    )
    known = {n.removesuffix("weight") + kind for n in chain for kind in ("weight", "bias")}
    if not fits or set(parts) != known:
        unknown = sorted(EMBEDDING + n for n in parts if n not in known) or sorted(shapes)[:4]
        raise WeightsError(
            "dino_controlnet: a semantic branch of unknown layout; unexpected tensors "
            + ", ".join(unknown[:8])
            + (" ..." if len(unknown) > 8 else ""),
            "use --semantic none or --turbo, or run the folder's own code with --trust-remote-code",
        )
    return {
        **image_branch_arguments(config),
        "conditioning_channels": kernels[0][1],
        "conditioning_embedding_out_channels": tuple(k[0] for k in kernels[:-1]),
    }


def load_semantic(
    folder: Path,
    index: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """The semantic branch in ``folder/dino_controlnet``.

    Its published source is not part of the released code, so by default it is built in our own reading, which every
    tensor in the file has to fit.

    Args:
        folder: around ``dino_controlnet``.
        index: content of ``model_index.json``.
        dtype: floating dtype to load as.
        trust_remote_code: import the class that the folder brings, and only it.

    Raises:
        WeightsError: unknown layout (names the tensors), or no such class in the folder.
    """
    place = folder / "dino_controlnet"
    if trust_remote_code:
        return RemoteSemantic(_remote_network(folder, index, dtype))
    file = component_file(place)
    tensors = open_checkpoint(file)
    config = read_config(place)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    with empty_weights():
        branch = SemanticControlNet(**semantic_arguments(config, shapes))
    names = {name: name for name in tensors if not name.startswith(SEMANTIC_BRANCH_UNUSED)}
    try:
        attach(branch, WeightSource(file, names, dtype=dtype, label="semantic branch"), load=False)
    except WeightsError as error:
        raise WeightsError(
            error.message,
            "use --semantic none or --turbo, or run the folder's own code with --trust-remote-code",
        ) from error
    if config.get("_class_name") != SemanticControlNet.__name__:
        from vision3d.progress import warn

        warn(
            "the semantic branch's published source is not known to us; its tensors fit our reading of it, "
            "which --trust-remote-code replaces by the folder's own code"
        )
    return branch


class RemoteSemantic(nn.Module):
    """A checkpoint's own semantic branch behind our interface.

    It is not saved with a pipeline: its code stays where it came from.

    Args:
        network: instance of the class that the checkpoint brings.
    """

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of its weights."""
        return next(self.parameters()).dtype

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def embed(self, features: Tensor) -> Tensor:
        """DINO features to the first level's width, at twice their size."""
        return self.network.dino_controlnet_cond_embedding(features.to(next(self.parameters()).dtype))

    def guide(self, embedded: Tensor, context: Tensor, conditioning_scale: float = 1.0) -> list[Tensor]:
        """Embedded features at the latent's size to one tensor per skip.

        Raises:
            WeightsError: the class returns something else than twelve tensors and nothing for the middle.
        """
        embedded = embedded.to(next(self.parameters()).dtype)
        context = context.to(embedded).expand(embedded.shape[0], -1, -1)
        out = self.network(
            embedded,
            0,
            encoder_hidden_states=context,
            conditioning_scale=conditioning_scale,
            guess_mode=False,
            return_dict=False,
        )
        tensors, middle = out if isinstance(out, tuple) and len(out) == 2 else (out, None)
        if middle is not None or not all(isinstance(t, Tensor) for t in tensors):
            raise WeightsError(
                "the checkpoint's semantic branch returns something unexpected", "use --semantic none"
            )
        return list(tensors)


@contextlib.contextmanager
def _moved_modules() -> Iterator[None]:
    """Names under which older code imports what diffusers has moved since."""
    moved = {"diffusers.models.controlnet": "diffusers.models.controlnets.controlnet"}
    added = []
    for old, new in moved.items():
        try:
            found = importlib.util.find_spec(old) is not None
        except (ImportError, ValueError):
            found = False
        if not found and old not in sys.modules:
            sys.modules[old] = importlib.import_module(new)
            added.append(old)
    try:
        yield
    finally:
        for old in added:
            sys.modules.pop(old, None)


def _remote_network(folder: Path, index: Mapping[str, Any], dtype: torch.dtype | None) -> nn.Module:
    from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module

    place = folder / "dino_controlnet"
    declared = index.get("dino_controlnet")
    named = isinstance(declared, list) and len(declared) == 2
    module = str(declared[0]) if named else ""  # type: ignore[index]
    cls = str(declared[1]) if named else str(read_config(place).get("_class_name"))  # type: ignore[index]
    candidates = [place / f"{module}.py", folder / f"{module}.py", *sorted(place.glob("*.py"))]
    source = next((c for c in candidates if c.is_file()), None)
    if source is None:
        raise WeightsError(
            f"{folder}: no Python source of {cls} in this folder", "get the repository with its .py files"
        )
    # Newer releases of diffusers ask again for the consent that the caller has given.
    asks = "trust_remote_code" in inspect.signature(get_class_from_dynamic_module).parameters
    consent = {"trust_remote_code": True} if asks else {}
    with _moved_modules():
        try:
            network_class = get_class_from_dynamic_module(
                str(source.parent), module_file=source.name, class_name=cls, **consent
            )
            network = network_class.from_pretrained(  # type: ignore[attr-defined]
                str(place),
                torch_dtype=dtype or torch.float32,
                use_safetensors=True,
                variant="fp16" if ".fp16." in component_file(place).name else None,
            )
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WeightsError(f"{source.name}: the folder's own code fails: {first}") from error
    return network.eval().requires_grad_(False)


def write_index(folder: Path, networks: Mapping[str, Any], scalars: Mapping[str, Any]) -> None:
    """``model_index.json`` that makes ``folder`` one that :func:`load_folder` takes as ours."""
    from diffusers import __version__ as version

    from vision3d.io.files import atomic_write_json

    index: dict[str, Any] = {"_class_name": CLASS_NAME, "_diffusers_version": version}
    for name, network in networks.items():
        module = type(network).__module__
        library = module if module.startswith("vision3d") else module.partition(".")[0]
        index[name] = [library, type(network).__name__]
    unknown = set(scalars) - set(SCALARS)
    if unknown:
        raise ValueError(f"unknown scalars {sorted(unknown)}")
    atomic_write_json(folder / "model_index.json", {**index, **SCALARS, **scalars})


def save_dino(dino: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """A DINO network under the hub's names as ``config.json`` and safetensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.detach().cpu().to(dtype or value.dtype).contiguous()
        for name, value in dino.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors")
    config = {"_class_name": "Dino", "num_attention_heads": dino.config.heads}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
