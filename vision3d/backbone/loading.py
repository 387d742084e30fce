"""Weights from files to networks: no copy, no pickled code, and names in every complaint.

A checkpoint is memory-mapped; a network is built without storage and takes the mapped tensors as they are, so
loading costs about the size of the weights that are used, and unused parts cost nothing. A network remembers
its ``WeightSource``, so a run with little memory can let its weights go and fetch them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vision3d.backbone import keymap
from vision3d.errors import WeightsError

WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
COMPONENT_FILES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
)
INDEX = ".index.json"
"""How the name of a file ends that says which of a network's tensors are in which other file."""


def open_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, memory-mapped where the format allows.

    Accepts ``.safetensors``, and ``torch.save`` files (``.ckpt``, ``.pt``, ``.pth``, ``.bin``) with or without a
    ``state_dict`` wrapper, and the ``.index.json`` of weights that lie in several safetensors files. Pickled code is
    never executed.

    Raises:
        WeightsError: missing, damaged, of no known format, or holding other objects than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file", "check the path or pull the weights")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path}: the weight file is empty", "download it again")
    if path.name.endswith(INDEX):
        found: dict[str, Tensor] = {}
        for part, names in _parts(path).items():
            stored = open_checkpoint(part)
            if lost := [name for name in names if name not in stored]:
                raise WeightsError(
                    f"{part}: damaged safetensors file (no {lost[0]} in it)", "download it again"
                )
            found |= {name: stored[name] for name in names}
        return found
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt", device="cpu") as archive:
                return {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(f"{path}: damaged safetensors file ({error})", "download it again") from error
    content = _load_pickle(path)
    for wrapper in ("state_dict", "model", "teacher"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    tensors = (
        {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    )
    if not tensors:
        raise WeightsError(f"{path}: no named tensors in this file", "give a model checkpoint")
    return tensors


def _parts(index: Path) -> dict[Path, list[str]]:
    """The files that an index names, and the tensors that are in each."""
    parts: dict[Path, list[str]] = {}
    try:
        for name, file in json.loads(index.read_text())["weight_map"].items():
            parts.setdefault(index.parent / str(file), []).append(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: damaged index of weights ({error})", "download it again") from error
    if strange := [part.name for part in parts if part.suffix != ".safetensors"]:
        raise WeightsError(f"{index}: names {strange[0]}, which is no safetensors file", "download it again")
    return parts


def _load_pickle(path: Path) -> Any:
    def load(mmap: bool) -> Any:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)

    try:
        try:
            return load(True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return load(False)  # files written before torch 1.6 cannot be mapped
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            if not file.read(4).startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or a bare pickle
                raise WeightsError(
                    f"{path}: no weight file, but a web page, a picture or the like", "download it again"
                ) from error
        reason = str(error).splitlines()[0] if "Unsupported" not in str(error) else "it needs code to load"
        if "global" in str(error).lower() or "unsupported" in str(error).lower():
            raise WeightsError(
                f"{path}: holds pickled code, which is never executed",
                "convert it to safetensors in an environment that you trust",
            ) from error
        raise WeightsError(f"{path}: damaged weight file ({reason})", "download it again") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        detail = str(error).splitlines()[0][:160]
        raise WeightsError(
            f"{path}: damaged or unknown weight file ({detail})", "download it again"
        ) from error


def component_file(folder: str | Path) -> Path:
    """The weight file of one diffusers or transformers component folder.

    Raises:
        WeightsError: the folder holds none.
    """
    folder = Path(folder)
    for name in COMPONENT_FILES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(p for p in folder.glob("*.safetensors")) if folder.is_dir() else []
    if others:
        return others[0]
    raise WeightsError(
        f"{folder}: no weights in this folder", f"expected one of {', '.join(COMPONENT_FILES[:2])}"
    )


@dataclass
class WeightSource:
    """Where a network's tensors come from.

    Attributes:
        path: checkpoint file.
        names: parameter name in the network to tensor name in the file.
        transform: reshapes a tensor whose layout differs, given its name in the network.
        dtype: floating dtype to load as; None keeps the file's.
        label: what the network is, for error messages.
    """

    path: Path
    names: dict[str, str]
    transform: Callable[[str, Tensor], Tensor] | None = None
    dtype: torch.dtype | None = None
    label: str = "network"
    tensors: Mapping[str, Tensor] | None = field(default=None, repr=False)

    def read(self, only: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """The network's tensors (or those of the submodules ``only``), in its names, layout and dtype."""
        source = self.tensors if self.tensors is not None else open_checkpoint(self.path)
        result = {}
        for name, stored in self.names.items():
            if only and not name.startswith(tuple(part + "." for part in only)):
                continue
            value = source[stored]
            if self.transform is not None:
                value = self.transform(name, value)
            if self.dtype is not None and value.is_floating_point():
                value = value.to(self.dtype)
            result[name] = value
        return result

    def checksum(self, only: tuple[str, ...] = ()) -> str:
        """SHA-256 of the tensors' names, shapes and values, the same in whatever file they lie.

        Values are hashed in their stored dtype. Computed once for each version of the file and kept in the cache
        folder.

        Args:
            only: names of submodules to hash; by default all tensors.
        """
        tag = ":".join([self.label, str(len(self.names)), *only])
        return _remembered(self.path, tag, lambda: tensor_checksum(self._plain(only)))

    def _plain(self, only: tuple[str, ...]) -> dict[str, Tensor]:
        kept, self.dtype = self.dtype, None
        try:
            return self.read(only)
        finally:
            self.dtype = kept


def tensor_checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in name order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _remembered(path: Path, tag: str, compute: Callable[[], str]) -> str:
    """A checksum of a file (of an index: of its files, too), remembered by paths, sizes and modification times."""
    from vision3d.io.files import atomic_write_bytes
    from vision3d.paths import cache_dir

    files = (
        [path, *(part for part in _parts(path) if part.is_file())] if path.name.endswith(INDEX) else [path]
    )
    states = [(file.resolve(), file.stat()) for file in files]
    key = "|".join([f"{place}|{stat.st_size}|{stat.st_mtime_ns}" for place, stat in states] + [tag])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    try:
        store = cache_dir("checksums") / name
        if store.is_file():
            return store.read_text().strip()
    except OSError:
        return compute()
    value = compute()
    with contextlib.suppress(Exception):  # a checksum that cannot be kept is only computed again
        atomic_write_bytes(store, value.encode())
    return value


def fingerprint(path: str | Path) -> str:
    """SHA-256 that identifies a checkpoint file, or a folder of components by its weight and config files."""
    path = Path(path)

    def of_file(file: Path) -> str:
        from vision3d.io.files import sha256_file

        if not file.name.endswith(INDEX):
            return _remembered(file, "file", lambda: sha256_file(file))
        parts = sorted(part.resolve() for part in _parts(file) if part.is_file())
        sums = [sha256_file(file), *(of_file(part) for part in parts)]
        return hashlib.sha256("|".join(sums).encode()).hexdigest()

    if path.is_file():
        return of_file(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        told = file.suffix in WEIGHT_SUFFIXES or file.name.endswith(("config.json", INDEX))
        if file.is_file() and told:
            digest.update(f"{file.relative_to(path).as_posix()}|{of_file(file)}|".encode())
    return digest.hexdigest()


def check_keys(
    expected: Mapping[str, tuple[int, ...]],
    given: Mapping[str, tuple[int, ...]],
    what: str,
    *,
    hint: str = "give the checkpoint that belongs to this network",
) -> None:
    """Compares names and shapes and names the first differences.

    Raises:
        WeightsError: anything is missing, unexpected, or of another shape.
    """

    def listing(names: list[str]) -> str:
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    missing = [n for n in expected if n not in given]
    unexpected = [n for n in given if n not in expected]
    wrong = [n for n in expected if n in given and tuple(expected[n]) != tuple(given[n])]
    parts = []
    if missing:
        parts.append(f"missing {listing(missing)}")
    if unexpected:
        parts.append(f"unexpected {listing(unexpected)}")
    if wrong:
        name = wrong[0]
        parts.append(
            f"{name} is {tuple(given[name])} but {tuple(expected[name])} is needed"
            + (f" (and {len(wrong) - 1} more shapes differ)" if len(wrong) > 1 else "")
        )
    if parts:
        raise WeightsError(f"{what}: these are not its weights: {'; '.join(parts)}", hint)


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuses weights with NaN or infinite values, naming the tensor.

    Raises:
        WeightsError: a value is not finite.
    """
    for name, value in tensors.items():
        if value.is_floating_point() and value.numel():
            low, high = torch.aminmax(value)
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise WeightsError(
                    f"{what}: tensor {name} holds NaN or infinite values",
                    "use another copy of the checkpoint",
                )


@contextlib.contextmanager
def empty_weights() -> Iterator[None]:
    """Networks made inside have parameters without storage; buffers are real."""
    with init_empty_weights(include_buffers=False):
        yield


def attach(
    module: nn.Module, source: WeightSource, *, load: bool = True, told: Callable[[str], str] = str
) -> nn.Module:
    """Binds a network (made under ``empty_weights``) to its weights and, by default, loads them.

    A network whose weights are not loaded already has the floating type that they will have.

    Args:
        module: the network.
        source: its weights.
        load: read them now.
        told: what complaints call the network's tensors, such as their names in the file.

    Raises:
        WeightsError: names or shapes do not fit, or values are not finite.
    """
    tensors = source.tensors if source.tensors is not None else open_checkpoint(source.path)
    known = getattr(
        tensors, "shapes", None
    )  # mappings that make their tensors when asked tell shapes for free
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for name, stored in source.names.items():
        value = tensors[stored] if known is None else torch.empty(known[stored], device="meta")
        shapes[name] = tuple((source.transform(name, value) if source.transform else value).shape)
        dtypes[name] = source.dtype if source.dtype and value.is_floating_point() else value.dtype
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {told(n) if n in expected else source.names[n]: shape for n, shape in shapes.items()}
    check_keys(
        {told(n): shape for n, shape in expected.items()}, given, f"{source.path.name} as {source.label}"
    )
    module._weight_source = source  # type: ignore[assignment]
    module.eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            parameter.data = parameter.data.to(dtypes[name])
    if load:
        load_weights(module)
    return module


def load_weights(
    module: nn.Module, device: torch.device | str | None = None, only: tuple[str, ...] = ()
) -> None:
    """Gives a network the weights that it lacks at present (freshly made, or released).

    Args:
        module: a network that was given to ``attach``; others are only moved.
        device: where its weights go; None leaves them in (mapped) host memory.
        only: names of submodules to load; the others stay empty.

    Raises:
        WeightsError: a value is not finite.
    """
    source: WeightSource | None = getattr(module, "_weight_source", None)
    parts = [getattr(module, name) for name in only] or [module]
    if source is not None and any(p.is_meta for part in parts for p in part.parameters()):
        values = source.read(only)
        check_finite(values, source.label)
        module.load_state_dict(values, assign=True, strict=not only)
        module.eval().requires_grad_(False)
    if device is not None:
        for part in parts:
            part.to(device)


def release_weights(module: nn.Module) -> bool:
    """Lets go of a network's weights if they can be fetched again; False if they cannot."""
    if getattr(module, "_weight_source", None) is None:
        return False
    for child in module.modules():
        for name, parameter in list(child._parameters.items()):
            if parameter is not None:
                child._parameters[name] = nn.Parameter(
                    torch.empty_like(parameter, device="meta"), requires_grad=False
                )
    return True


def pixel_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    """Floating type of what reads or makes pictures, beside networks of ``dtype``: float32 in place of 16 bits.

    float16 overflows in some autoencoders, and the 8 significant bits of bfloat16 show in normals and depths.
    """
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def leave_out(module: nn.Module, names: Iterable[str], parts: Iterable[str]) -> None:
    """Sets those of the ``parts`` of a network to None of which there are no tensors among ``names``."""
    names = list(names)
    for part in parts:
        if not any(name.startswith(f"{part}.") for name in names):
            setattr(module, part, None)


def load_component(
    cls: type,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    load: bool = True,
    optional: tuple[str, ...] = (),
) -> nn.Module:
    """A diffusers component (``config.json`` and one weight file) from its folder.

    Autoencoders may have the attention names of diffusers before 0.18, as the released SD 2.1 folder has, and take
    float32 in place of 16 bits. Of the submodules named as ``optional`` the file may hold nothing: they are None then.

    Raises:
        WeightsError: config or weights are missing, damaged or of another network.
    """
    folder = Path(folder)
    config = read_config(folder)
    file = component_file(folder)
    tensors = open_checkpoint(file)
    with empty_weights():
        module = cls.from_config(config)  # type: ignore[attr-defined]
    rename: Callable[[str], str] = str
    if cls.__name__ == "AutoencoderKL":
        rename, dtype = keymap.modern_attention, pixel_dtype(dtype)
    names = {rename(name): name for name in tensors}
    leave_out(module, names, optional)
    source = WeightSource(file, names, dtype=dtype, label=f"{folder.name} ({cls.__name__})")
    return attach(module, source, load=load)


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A component's configuration.

    Raises:
        WeightsError: the file is missing or no JSON.
    """
    try:
        return json.loads((folder / name).read_text())
    except FileNotFoundError:
        raise WeightsError(
            f"{folder}: no {name} in this folder", "give a diffusers component folder"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"{folder / name}: damaged configuration ({error})", "download it again"
        ) from error


def parameter_bytes(*modules: nn.Module | None) -> int:
    """Bytes that the parameters of these networks take when loaded."""
    total = 0
    for module in modules:
        if module is not None:
            total += sum(p.numel() * p.element_size() for p in module.parameters())
    return total
