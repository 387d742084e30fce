"""Device and precision policy, sizes of memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from vision3d.device import format_bytes, parse_bytes, resolve_device, resolve_dtype
from vision3d.errors import InputError, ResourceError


def test_auto_prefers_cuda_then_metal_then_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device() == torch.device("cuda")


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ResourceError, match="2 CUDA devices"):
        resolve_device("cuda:2")
    with pytest.raises(InputError):
        resolve_device("abacus")


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        ("cpu", None, torch.float32),
        ("mps", None, torch.float32),
        ("cuda", (8, 0), torch.bfloat16),
        ("cuda", (9, 0), torch.bfloat16),
        ("cuda", (7, 5), torch.float16),
    ],
)
def test_auto_precision_suits_the_device(monkeypatch, device, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert resolve_dtype("auto", torch.device(device)) == expected
    assert resolve_dtype(None, torch.device(device)) == expected


def test_precision_by_name():
    cpu = torch.device("cpu")
    assert resolve_dtype("bf16", cpu) == resolve_dtype("torch.bfloat16", cpu) == torch.bfloat16
    assert resolve_dtype(torch.float64, cpu) == torch.float64
    for wrong in ("int8", torch.int64):
        with pytest.raises(InputError):
            resolve_dtype(wrong, cpu)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6.5G", 6_500_000_000),
        ("6.5 GB", 6_500_000_000),
        ("1GiB", 2**30),
        ("800m", 800_000_000),
        ("2Ki", 2048),
        ("4096", 4096),
        (".5T", 500_000_000_000),
        (12, 12),
    ],
)
def test_memory_sizes_as_people_write_them(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "G", "six", "-1G", "0", "1.2.3G", "5i", "nan", float("nan"), 0])
def test_what_is_not_a_memory_size_is_refused(text):
    with pytest.raises(InputError):
        parse_bytes(text)


def test_sizes_for_people():
    assert [format_bytes(n) for n in (12, 1500, 6.5e9, 2e12)] == ["12 bytes", "1.5 kB", "6.5 GB", "2.0 TB"]


def test_peak_memory_counts_what_was_used_and_given_back():
    code = "from vision3d.device import peak_rss; a = b'x' * 300_000_000; del a; print(peak_rss())"
    peak = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    assert 300_000_000 <= peak < 600_000_000


def test_exact_arithmetic_turns_off_what_varies() -> None:
    import torch

    from vision3d.backbone import Backbone

    switches = [
        (torch.backends.cudnn, "benchmark", False),
        (torch.backends.cudnn, "deterministic", True),
        (torch.backends.cudnn, "allow_tf32", False),
        (torch.backends.cuda.matmul, "allow_tf32", False),
    ]
    before = [getattr(place, name) for place, name, _ in switches]
    try:
        for place, name, wanted in switches:
            setattr(place, name, not wanted)
        Backbone.from_pretrained(device="cpu")
        assert all(getattr(place, name) is not wanted for place, name, wanted in switches)
        Backbone.from_pretrained(device="cpu", deterministic=True)
        assert all(getattr(place, name) is wanted for place, name, wanted in switches)
    finally:
        for (place, name, _), value in zip(switches, before, strict=True):
            setattr(place, name, value)
