"""Which of a pipeline's networks are in memory: all of them, or each when its turn comes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import Self, override

from vision3d.backbone import loading
from vision3d.backbone.sharing import cast
from vision3d.device import parse_bytes
from vision3d.errors import InputError
from vision3d.io.files import staged_folder

_OFFLINE = {
    "cache_dir", "force_download", "local_files_only", "low_cpu_mem_usage", "proxies", "revision", "token",
    "use_safetensors", "variant",
}  # fmt: skip
RESERVE = 3 << 29
"""Bytes beside the weights: the interpreter, its libraries and activations."""


class Residency:
    """Mixed into pipelines whose networks are bound to files and read at first use."""

    _device: torch.device = torch.device("cpu")
    _memory_budget: int | None = None
    _sequential: bool = False
    pixel_networks: ClassVar[tuple[str, ...]] = ("vae",)
    """Attributes that stay in 32 bits where the others have 16, see :func:`vision3d.backbone.loading.pixel_dtype`."""

    @classmethod
    def network_dtype(cls, name: str, dtype: torch.dtype | None) -> torch.dtype | None:
        """Floating type of the network in an attribute, beside networks of ``dtype``."""
        return loading.pixel_dtype(dtype) if name in cls.pixel_networks else dtype

    def cast_networks(self, networks: Mapping[str, Any], dtype: torch.dtype | None) -> None:
        """Puts networks of another floating type in the place of these attributes; None leaves them as they are."""
        for name, network in networks.items():
            if dtype is not None and isinstance(network, nn.Module):
                setattr(self, name, cast(network, self.network_dtype(name, dtype) or dtype))

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes one folder, all of it or nothing: a subfolder per network, safetensors, ``model_index.json``.

        Raises:
            OutputError: the disk is full or cannot be written; nothing is left behind.
        """
        with staged_folder(save_directory, last="model_index.json") as staging:
            self._save(staging, **kwargs)

    def _save(self, folder: Path, **kwargs: Any) -> None:
        """Writes all of it into a folder that is nobody's yet."""
        raise NotImplementedError

    def used_parts(self, network: nn.Module) -> tuple[str, ...]:
        """Parts of a network that are ever run, the only ones to be read from disk; () is all of it."""
        return ()

    def place(self, device: torch.device, memory: str | int, *networks: nn.Module) -> None:
        """Decides where networks run, and whether all of them can stay resident.

        Args:
            device: where they run.
            memory: ``auto`` for no limit, or a budget in bytes or such as ``6.5G``.
            networks: what would stay resident: networks, or the parts of them that are used.

        Raises:
            InputError: a budget that cannot be read.
        """
        self._device = device
        self._memory_budget = None if memory == "auto" else parse_bytes(memory)
        needed = loading.parameter_bytes(*networks) + RESERVE
        self._sequential = self._memory_budget is not None and self._memory_budget < needed

    def load_unless_sequential(self, *networks: nn.Module) -> None:
        """Reads the weights of networks that stay resident."""
        if not self._sequential:
            for network in networks:
                loading.load_weights(network, self._device, self.used_parts(network))

    @contextmanager
    def resident(self, *networks: nn.Module) -> Iterator[None]:
        """Weights of these networks are on the device inside; released after, in sequential mode."""
        for network in networks:
            hook = getattr(network, "_hf_hook", None)
            if hook is not None:
                hook.pre_forward(network)
            else:
                loading.load_weights(network, self._device, self.used_parts(network))
        try:
            yield
        finally:
            if self._sequential:
                for network in networks:
                    loading.release_weights(network)


class DiffusersResidency(Residency):
    """The same for a ``DiffusionPipeline``, whose face moves and saves networks; to be mixed in before it."""

    components: dict[str, Any]
    unet: Any

    @classmethod
    def components_among(cls, options: dict[str, Any]) -> dict[str, Any]:
        """The networks among further arguments of ``from_pretrained``.

        Arguments of diffusers that decide where files are found or how they are read are passed over: nothing is
        downloaded here, and weights are always mapped.

        Raises:
            InputError: an argument that is neither.
        """
        given = {name: value for name, value in options.items() if name not in _OFFLINE}
        known = list(inspect.signature(cls.__init__).parameters)[1:]
        if strange := [name for name in given if name not in known]:
            hint = "use device=" if strange[0] == "device_map" else f"components are {', '.join(known)}"
            raise InputError(f"{cls.__name__}.from_pretrained knows no {strange[0]}=", hint)
        return given

    @property
    def device(self) -> torch.device:
        """Where networks run, loaded or not."""
        return self._device

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves (and casts) every network, as ``DiffusionPipeline.to`` does; those of other pipelines are not cast."""
        dtype = kwargs.pop("dtype", None) or next((a for a in args if isinstance(a, torch.dtype)), None)
        places = [a for a in args if not isinstance(a, torch.dtype)]
        moves = bool(places or kwargs)
        self.cast_networks(self.components, dtype)
        for network in self.components.values():
            if isinstance(network, nn.Module):
                loading.load_weights(network, None if moves else self._device)
        if moves:
            super().to(*places, **kwargs)  # type: ignore[misc]
            self._device = self.unet.device
        return self

    @override
    def _save(self, folder: Path, **kwargs: Any) -> None:
        for network in self.components.values():
            if isinstance(network, nn.Module):
                loading.load_weights(network)
        super(Residency, self).save_pretrained(str(folder), **kwargs)  # type: ignore[misc]
