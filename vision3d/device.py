"""Where to compute, in which precision and with how much memory: one policy for all pipelines."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vision3d.errors import InputError, ResourceError

if TYPE_CHECKING:
    import torch

# As written, 1 GB is 10^9 bytes and 1 GiB is 2^30; a bare "G" takes the smaller of the two, so that a budget
# is kept whichever was meant.
_BYTES = {
    "": 1,
    **{unit: 1000**power for power, unit in enumerate("kmgt", 1)},
    **{f"{unit}i": 1024**power for power, unit in enumerate("kmgt", 1)},
}
_DTYPES = {
    "fp32": "float32",
    "float32": "float32",
    "fp16": "float16",
    "float16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
}


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device that a name stands for, checked to be there.

    Args:
        device: "auto" (CUDA, else MPS, else CPU), "cpu", "cuda", "cuda:1", "mps", or a torch device.

    Raises:
        InputError: no such name.
        ResourceError: this machine or this torch has no such device.
    """
    import torch

    if isinstance(device, torch.device):
        place = device
    elif device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    else:
        try:
            place = torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise InputError(
                f"no device is called {device!r}", "use auto, cpu, cuda, cuda:1 or mps"
            ) from error
    if place.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (place.index or 0) >= count:
            there = f"there are {count} CUDA devices" if count else "torch finds no CUDA device"
            raise ResourceError(f"device {str(place)!r}, but {there}", "use auto or cpu")
    elif place.type == "mps" and not torch.backends.mps.is_available():
        raise ResourceError("device 'mps', but torch finds no Metal device", "use auto or cpu")
    return place


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Floating type to compute in.

    "auto" (or None) is float32 on CPUs, where narrower types are emulated and several times slower, and on
    MPS; on CUDA it is bfloat16 from compute capability 8.0 and float16 before.

    Args:
        dtype: "auto", "fp32", "fp16", "bf16", their long names, or a torch dtype.
        device: where it will be used.

    Raises:
        InputError: not a floating type.
    """
    import torch

    if isinstance(dtype, torch.dtype):
        if not dtype.is_floating_point:
            raise InputError(f"dtype {dtype}", "use a floating type: fp32, fp16 or bf16")
        return dtype
    if dtype is None or dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    name = _DTYPES.get(dtype.lower().removeprefix("torch."))
    if name is None:
        raise InputError(f"dtype {dtype!r}", "use auto, fp32, fp16 or bf16")
    return getattr(torch, name)


def compute_exactly() -> None:
    """Makes this process's CUDA arithmetic the same in every run: no tuned algorithms, no TF32."""
    import torch

    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def parse_bytes(size: str | int | float) -> int:
    """Number of bytes in a size as people write it: "6.5G", "800 MB", "12GiB", 4096.

    K, M, G and T (with or without B) are powers of 1000; Ki, Mi, Gi and Ti are powers of 1024.

    Raises:
        InputError: not a size, or not positive.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?i?)b?\s*", size.lower())
        if not match or match[2] not in _BYTES:
            raise InputError(f"memory size {size!r}", "write it like 6.5G or 800M")
        value = float(match[1]) * _BYTES[match[2]]
    else:
        value = float(size)
    if not 1 <= value < float("inf"):
        raise InputError(f"memory size {size!r}", "give more than zero bytes")
    return int(value)


def format_bytes(size: float) -> str:
    """A size for people, in powers of 1000: 6.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes; 0 where the system does not say."""
    try:
        # The kernel's own mark; getrusage's is inherited from the parent process across exec.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def dtype_name(dtype: str | torch.dtype, device: str | torch.device = "auto") -> str:
    """Name of the floating type that ``dtype`` comes to on ``device``, such as "float32", for settings.

    Raises:
        InputError: as :func:`resolve_dtype` and :func:`resolve_device`.
    """
    return str(resolve_dtype(dtype, resolve_device(device))).removeprefix("torch.")
