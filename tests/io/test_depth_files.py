"""Depth PNG and EXR, read back by others."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision3d.errors import InputError
from vision3d.io.depth import png_scaling, read_depth_png, write_depth_png, write_exr


def test_png_reads_back_within_half_a_step(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32) * 7 - 3
    valid = np.ones((30, 40), bool)
    valid[3:5] = False
    scaling = png_scaling(values, valid, metric=False)
    write_depth_png(tmp_path / "d.png", values, valid, scaling, {"space": "something"})
    with Image.open(tmp_path / "d.png") as image:
        numbers = np.asarray(image)
        assert image.info["space"] == "something"
    assert numbers.dtype == np.uint16
    assert numbers[valid].min() == 1
    assert numbers[valid].max() == 65535
    assert not numbers[~valid].any()
    back = read_depth_png(tmp_path / "d.png")
    assert np.isnan(back[~valid]).all()
    assert np.abs(back - values)[valid].max() <= scaling.scale * 0.51


def test_metric_depth_is_in_millimetres(tmp_path: Path) -> None:
    import cv2

    values = np.full((30, 40), 1.234, np.float32)
    values[0] = np.inf
    valid = np.isfinite(values)
    write_depth_png(tmp_path / "d.png", values, valid, png_scaling(values, valid, metric=True))
    numbers = cv2.imread(str(tmp_path / "d.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(numbers, np.where(valid, 1234, 0))


def test_metric_depth_beyond_65_metres_is_scaled(tmp_path: Path) -> None:
    values = np.linspace(2, 300, 1200, dtype=np.float32).reshape(30, 40)
    valid = np.ones((30, 40), bool)
    write_depth_png(tmp_path / "d.png", values, valid, png_scaling(values, valid, metric=True))
    np.testing.assert_allclose(read_depth_png(tmp_path / "d.png"), values, atol=0.003)


@pytest.mark.parametrize(
    "values", [np.full((30, 40), 5.0, np.float32), np.full((30, 40), np.nan, np.float32)]
)
def test_constant_and_empty_maps(tmp_path: Path, values: np.ndarray) -> None:
    valid = np.isfinite(values)
    write_depth_png(tmp_path / "d.png", values, valid, png_scaling(values, valid, metric=False))
    np.testing.assert_allclose(read_depth_png(tmp_path / "d.png"), values)


def test_another_png_is_refused(tmp_path: Path) -> None:
    Image.new("L", (30, 40)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="not a depth PNG"):
        read_depth_png(tmp_path / "a.png")


def exr_cases(height: int, smooth: bool) -> np.ndarray:
    """Noise does not compress and is stored raw, a smooth map is; heights around the block of 16 lines."""
    if smooth:
        return np.add.outer(np.arange(height), np.arange(33)).astype(np.float32) / 7
    bits = np.random.default_rng(0).integers(0, 2**31 - 2**24, (height, 33), dtype=np.int32)
    return np.nan_to_num(bits.view(np.float32))


@pytest.mark.parametrize("height", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("smooth", [True, False])
def test_exr_is_read_by_openexr_to_the_bit(tmp_path: Path, height: int, smooth: bool) -> None:
    openexr = pytest.importorskip("OpenEXR")
    values = exr_cases(height, smooth)
    write_exr(tmp_path / "a.exr", {"Y": values}, {"space": "metric depth"})
    with openexr.File(str(tmp_path / "a.exr"), separate_channels=True) as file:
        assert file.header()["space"] == "metric depth"
        np.testing.assert_array_equal(file.channels()["Y"].pixels, values)


READ_WITH_OPENCV = """
import sys, cv2, numpy
if not cv2.haveImageReader(sys.argv[1]):
    sys.exit(3)
numpy.save(sys.argv[2], cv2.imread(sys.argv[1], cv2.IMREAD_UNCHANGED))
"""


@pytest.mark.parametrize("smooth", [True, False])
def test_exr_is_read_by_opencv_to_the_bit(tmp_path: Path, smooth: bool) -> None:
    values = exr_cases(50, smooth)
    write_exr(tmp_path / "a.exr", {"Y": values})
    done = subprocess.run(
        [sys.executable, "-c", READ_WITH_OPENCV, str(tmp_path / "a.exr"), str(tmp_path / "a.npy")],
        env={**os.environ, "OPENCV_IO_ENABLE_OPENEXR": "1"},
        check=False,
    )
    if done.returncode == 3:
        pytest.skip("this OpenCV has no OpenEXR")
    read = np.load(tmp_path / "a.npy")
    np.testing.assert_array_equal(read if read.ndim == 2 else read[..., 0], values)


def test_exr_blocks_unpack_to_the_lines_by_the_formats_own_rules(tmp_path: Path) -> None:
    """Undo ZIP as the specification says, byte by byte, from the offset table on."""
    values = exr_cases(20, smooth=True)
    write_exr(tmp_path / "a.exr", {"Y": values})
    data = (tmp_path / "a.exr").read_bytes()
    assert data[:8] == bytes.fromhex("762f310102000000")
    table = data.index(b"screenWindowWidth\0float\0") + len(b"screenWindowWidth\0float\0") + 8 + 1
    lines = []
    for offset in struct.unpack_from("<2Q", data, table):
        first, size = struct.unpack_from("<ii", data, offset)
        assert first == len(lines)
        packed = bytearray(zlib.decompress(data[offset + 8 : offset + 8 + size]))
        for i in range(1, len(packed)):
            packed[i] = (packed[i - 1] + packed[i] - 128) % 256
        half = (len(packed) + 1) // 2
        plain = bytearray(len(packed))
        plain[0::2], plain[1::2] = packed[:half], packed[half:]
        lines += list(np.frombuffer(bytes(plain), "<f4").reshape(-1, 33))
    np.testing.assert_array_equal(np.stack(lines), values)


def test_several_exr_channels(tmp_path: Path) -> None:
    openexr = pytest.importorskip("OpenEXR")
    rng = np.random.default_rng(0)
    channels = {name: rng.normal(size=(37, 50)).astype(np.float32) for name in ("R", "G", "B", "Z")}
    write_exr(tmp_path / "a.exr", channels, {"space": "metric depth", "unit": "m"})
    with openexr.File(str(tmp_path / "a.exr"), separate_channels=True) as file:
        assert file.header()["space"] == "metric depth"
        assert set(file.channels()) == set(channels)
        for name, values in channels.items():
            np.testing.assert_array_equal(file.channels()[name].pixels, values)
