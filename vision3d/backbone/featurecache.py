"""What an image costs once: features kept on disk, latents kept in memory.

Both caches are addressed by content: a key holds everything that the values depend on, so nothing ever has to
be declared stale, two pipelines that ask for the same thing share it, and a wrong hit needs a SHA-256
collision. Whoever asks gets the same numbers whether they were stored or just computed.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vision3d.device import parse_bytes
from vision3d.errors import OutputError
from vision3d.io.files import atomic_write_bytes
from vision3d.paths import home
from vision3d.progress import warn

FORMAT, VERSION = "vision3d-features", "2"
LIMIT = "20G"
_LARGEST_HALF = torch.finfo(torch.float16).max


def image_sha256(image: np.ndarray | Tensor | bytes) -> str:
    """SHA-256 of an image's shape, type and values, or of a file's bytes."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    if isinstance(image, Tensor):  # NumPy has no bfloat16
        values = image.detach().cpu().contiguous()
        shape, kind = tuple(values.shape), str(values.dtype).removeprefix("torch.")
        data = values.reshape(-1).view(torch.uint8).numpy().data
    else:
        array = np.ascontiguousarray(image)
        shape, kind, data = array.shape, str(array.dtype), array.reshape(-1).view(np.uint8).data
    digest = hashlib.sha256(f"{shape}|{kind}|".encode())
    digest.update(data)
    return digest.hexdigest()


@dataclass(frozen=True)
class FeatureKey:
    """Everything that features of an image depend on.

    Attributes:
        image: SHA-256 of the image's values or bytes.
        canvas: how the image became the network's input: sizes, padding, crop, resampling, tiling.
        model: checksum of the weights, and for DINO the rule that stretches its position table.
        taps: what was read, in order.
        timestep: of the diffusion network; None for others.
        condition: hash of the conditioning; empty for none.
        noise: which noise was added: a name, a seed, or a hash of the tensor; empty for none.
        dtype: in which the network ran.
    """

    image: str
    canvas: str
    model: str
    taps: tuple[str, ...]
    timestep: float | None = None
    condition: str = ""
    noise: str = ""
    dtype: str = "float32"

    @property
    def digest(self) -> str:
        """SHA-256 over all fields; the name of the entry."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def text(self) -> str:
        """All fields as canonical JSON."""
        return json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)


class FeatureCache:
    """Named tensors on disk, in half precision, the least recently used removed beyond a limit.

    Several processes may use one folder: entries appear by renaming, are never changed, and one that vanishes
    or is damaged is simply computed again. Values too large for half precision are kept in float32.

    Args:
        folder: of the entries; by default ``features`` in ``$VISION3D_HOME`` or ``~/.cache/vision3d``.
        limit: bytes, or text such as ``20G``; the folder stays below it.

    Attributes:
        hits, misses: entries that were and were not there.
    """

    def __init__(self, folder: str | Path | None = None, limit: int | str = LIMIT) -> None:
        self.folder = Path(folder).expanduser() if folder is not None else home() / "features"
        self.limit = parse_bytes(limit) if isinstance(limit, str) else limit
        self.hits = self.misses = 0
        self._added: int | None = (
            None  # bytes written since the folder was measured; None before the first time
        )
        self._measured = 0
        self._warned = False

    def path(self, key: FeatureKey) -> Path:
        """The file of an entry; spread over 256 folders."""
        digest = key.digest
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def get(self, key: FeatureKey) -> dict[str, Tensor] | None:
        """The tensors of an entry as float32 on the CPU, or None. A damaged entry is removed."""
        path = self.path(key)
        try:
            tensors = _read(path, key)
        except FileNotFoundError:
            tensors = None
        except (SafetensorError, OSError, ValueError, KeyError):
            with suppress(OSError):
                path.unlink()
            tensors = None
        if tensors is None:
            self.misses += 1
            return None
        self.hits += 1
        with suppress(OSError):  # another process may have removed it
            os.utime(path)
        return tensors

    def put(self, key: FeatureKey, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors. A disk that cannot be written costs a warning, not the run."""
        self._write(key, _rounded(tensors))

    def get_or_compute(
        self, key: FeatureKey, compute: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """An entry's tensors as float32 on the CPU, computed and stored if they are not there."""
        tensors = self.get(key)
        if tensors is None:
            stored = _rounded(compute())
            self._write(key, stored)
            tensors = {name: value.float() for name, value in stored.items()}
        return tensors

    def size(self) -> int:
        """Bytes in the folder."""
        return sum(size for _, size, _ in self._entries())

    def clear(self) -> None:
        """Remove every entry."""
        for _, _, path in self._entries():
            with suppress(OSError):
                path.unlink()
        self._added = None

    def _write(self, key: FeatureKey, stored: Mapping[str, Tensor]) -> None:
        header = {"format": FORMAT, "version": VERSION, "key": key.text, "crc32": _checksum(stored)}
        data = save(dict(stored), metadata=header)
        if len(data) > self.limit:
            return
        try:
            self._make_room(len(data))
            atomic_write_bytes(self.path(key), data)
        except OutputError as error:
            if not self._warned:
                warn(f"features are not kept: {error}")
                self._warned = True

    def _make_room(self, needed: int) -> None:
        """Remove the oldest entries if ``needed`` more bytes would pass the limit.

        The folder is measured at first and after every 2 % of the limit, since other processes write to it.
        """
        if (
            self._added is None
            or self._added > self.limit // 50
            or self._measured + self._added + needed > self.limit
        ):
            entries = sorted(self._entries())
            self._measured, self._added = sum(size for _, size, _ in entries), 0
            # Make some more room than is needed, so that a full cache is not measured for every entry.
            goal = self.limit - needed
            if self._measured > goal:
                goal = min(goal, max(0, self.limit * 9 // 10 - needed))
            for _, size, path in entries:
                if self._measured <= goal:
                    break
                with suppress(OSError):
                    path.unlink()
                self._measured -= size
        self._added += needed

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Time of last use, bytes and path of every entry; leftovers of killed processes are removed."""
        found = []
        for folder in self.folder.glob("[0-9a-f][0-9a-f]"):
            with suppress(OSError), os.scandir(folder) as listing:
                for item in listing:
                    with suppress(OSError):
                        stat = item.stat()
                        if ".partial" not in item.name:
                            found.append((stat.st_mtime, stat.st_size, Path(item.path)))
                        elif time.time() - stat.st_mtime > 3600:
                            Path(item.path).unlink()
        return found


def _rounded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors in half precision, or in single where half would overflow."""
    result = {}
    for name, value in tensors.items():
        value = value.detach()
        fits = not value.numel() or bool(value.abs().max() <= _LARGEST_HALF)
        # A copy even where nothing is converted: views of one storage cannot be written as separate tensors.
        result[name] = value.to("cpu", torch.float16 if fits else torch.float32, copy=True).contiguous()
    return result


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def _read(path: Path, key: FeatureKey) -> dict[str, Tensor]:
    """The tensors of an entry. Raises what says that it is missing or not this entry undamaged."""
    if not path.is_file():
        raise FileNotFoundError(path)
    with safe_open(path, framework="pt", device="cpu") as archive:
        header = archive.metadata() or {}
        if (header.get("format"), header.get("version"), header.get("key")) != (FORMAT, VERSION, key.text):
            raise ValueError("another entry")
        stored = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    if _checksum(stored) != header.get("crc32"):
        raise ValueError("damaged")
    # A copy, so that nothing depends on a mapped file that may be removed.
    return {name: value.to(torch.float32, copy=True) for name, value in stored.items()}


@dataclass(frozen=True)
class LatentKey:
    """Everything that the latents of an image depend on.

    Attributes:
        image: SHA-256 of the image's values.
        canvas: how the image became the autoencoder's input.
        vae: checksum of the autoencoder's weights.
        dtype: in which the autoencoder ran.
        what: which of its outputs: ``mean``, ``moments``, ...
    """

    image: str
    canvas: str
    vae: str
    dtype: str = "float32"
    what: str = "mean"


class LatentCache:
    """Latents in memory, so that pipelines that share an autoencoder encode an image once.

    Safe for threads: a second thread that asks for what the first computes waits for it.

    Args:
        limit: bytes, or text such as ``256M``; the least recently used are let go beyond it.

    Attributes:
        hits, misses: latents that were and were not there.
    """

    def __init__(self, limit: int | str = "256M") -> None:
        self.limit = parse_bytes(limit) if isinstance(limit, str) else limit
        self.hits = self.misses = 0
        self._entries: OrderedDict[LatentKey, Tensor] = OrderedDict()
        self._computing: dict[LatentKey, threading.Lock] = {}
        self._lock = threading.Lock()

    def get_or_compute(self, key: LatentKey, encode: Callable[[], Tensor]) -> Tensor:
        """The latents of ``key``; ``encode`` is called if they are not there. Not to be changed in place."""
        with self._lock:
            turn = self._computing.setdefault(key, threading.Lock())
        with turn:
            try:
                with self._lock:
                    found = self._entries.get(key)
                    if found is not None:
                        self._entries.move_to_end(key)
                        self.hits += 1
                        return found
                    self.misses += 1
                latents = encode().detach()
                with self._lock:
                    self._store(key, latents)
                return latents
            finally:
                with self._lock:
                    self._computing.pop(key, None)

    def _store(self, key: LatentKey, latents: Tensor) -> None:
        size = _bytes(latents)
        if size > self.limit:
            return
        self._entries[key] = latents
        while self.bytes > self.limit:
            self._entries.popitem(last=False)

    @property
    def bytes(self) -> int:
        """Memory that the latents take."""
        return sum(map(_bytes, self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def clear(self) -> None:
        """Forget all latents; the counters stay."""
        with self._lock:
            self._entries.clear()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


_SHARED = LatentCache()


def shared_latents() -> LatentCache:
    """The process's own cache, used by every pipeline that is not given another."""
    return _SHARED
