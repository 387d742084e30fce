"""Photographs in every form that people have them, and one clear line for each that cannot be used."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from vision3d.errors import InputError
from vision3d.io.images import Photo, load_photo


def picture(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    """A colourful uint8 picture with no symmetry, smooth enough for JPEG."""
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [
        np.sin(rows / (7 + c) + columns / (11 - c) + phase[c]) * 80 + columns / width * 60 for c in range(3)
    ]
    return np.clip(np.stack(waves, axis=-1) + 90, 0, 255).astype(np.uint8)


def with_exif(orientation: int = 1, **fields: Any) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    if fields:
        exif[ExifTags.IFD.Exif] = {int(ExifTags.Base[name]): value for name, value in fields.items()}
    return exif


# ---- formats


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp", ".gif", ".ppm"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, suffix: str) -> None:
    pixels = picture()
    path = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    if suffix == ".gif":  # 256 colours only
        pixels = np.repeat(pixels[..., :1] // 2 * 2, 3, axis=-1)
    Image.fromarray(pixels).save(path, **options)
    photo = load_photo(path)
    np.testing.assert_array_equal(photo.pixels, pixels)
    assert (photo.name, photo.path, photo.size) == ("a", path, (40, 60))
    assert photo.alpha is None
    assert not photo.truncated


def test_jpeg_is_close(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(load_photo(str(tmp_path / "a.jpg")).pixels.astype(int) - picture()).mean() < 4


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_kept(tmp_path: Path, kind: str, channels: int) -> None:
    import cv2

    pixels = np.random.default_rng(1).integers(0, 65536, (20, 30, channels), dtype=np.uint16)
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    cv2.imwrite(str(tmp_path / f"a.{kind}"), pixels[..., order])
    photo = load_photo(tmp_path / f"a.{kind}")
    assert photo.pixels.dtype == np.uint16
    np.testing.assert_array_equal(
        photo.pixels, np.repeat(pixels, 3, -1) if channels == 1 else pixels[..., :3]
    )
    np.testing.assert_allclose(photo.rgb, photo.pixels / 65535, rtol=1e-6)
    assert np.abs(photo.rgb8 - photo.rgb * 255).max() <= 0.5001
    if channels == 4:
        np.testing.assert_allclose(photo.alpha, pixels[..., 3] / 65535, atol=1e-6)


def test_sixteen_bit_grey_with_alpha(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    values = np.random.default_rng(2).integers(0, 65536, (20, 30, 2), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 30, 20, 16, 4, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    (tmp_path / "a.png").write_bytes(data)
    photo = load_photo(tmp_path / "a.png")
    np.testing.assert_array_equal(photo.pixels, np.repeat(values[..., :1], 3, axis=-1))
    np.testing.assert_allclose(photo.alpha, values[..., 1] / 65535, atol=1e-6)


def test_grey_and_black_and_white(tmp_path: Path) -> None:
    grey = picture()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey > 100).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(load_photo(tmp_path / "grey.png").pixels, np.repeat(grey[..., None], 3, -1))
    bits = load_photo(tmp_path / "bits.png").pixels[..., 0]
    np.testing.assert_array_equal(bits, np.where(grey > 100, 255, 0))


def test_alpha_is_kept_apart_and_not_composited(tmp_path: Path) -> None:
    pixels = picture()
    alpha = np.tile(np.arange(60, dtype=np.uint8) * 4, (40, 1))
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([pixels[..., 0], alpha])).save(tmp_path / "la.png")
    photo = load_photo(tmp_path / "rgba.png")
    np.testing.assert_array_equal(photo.pixels, pixels)
    np.testing.assert_allclose(photo.alpha, alpha / 255, atol=1e-6)
    photo = load_photo(tmp_path / "la.png")
    np.testing.assert_array_equal(photo.pixels[..., 2], pixels[..., 0])
    np.testing.assert_allclose(photo.alpha, alpha / 255, atol=1e-6)


def test_what_is_seen_of_a_transparent_image(tmp_path: Path) -> None:
    pixels, alpha = picture(), np.tile(np.arange(60, dtype=np.uint8) * 4, (40, 1))
    photo = load_photo(np.dstack([pixels, alpha]))
    np.testing.assert_array_equal(photo.opaque, alpha > 128)
    blended = 255 + (pixels.astype(float) - 255) * (alpha[..., None] / 255)
    assert np.abs(photo.on_white - blended).max() <= 1
    plain = load_photo(pixels)
    assert plain.opaque is None
    np.testing.assert_array_equal(plain.on_white, pixels)
    thin = load_photo(
        np.dstack([pixels, alpha // 2])
    )  # where no more than half is covered, what is covered counts
    np.testing.assert_array_equal(thin.opaque, alpha // 2 > 0)
    Image.fromarray(np.dstack([pixels, np.zeros_like(alpha)])).save(tmp_path / "ghost.png")
    with pytest.raises(InputError, match=r"ghost\.png is transparent everywhere"):
        load_photo(tmp_path / "ghost.png")


def test_an_opaque_alpha_channel_is_no_alpha(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([picture(), np.full((40, 60), 255, np.uint8)])).save(tmp_path / "a.png")
    assert load_photo(tmp_path / "a.png").alpha is None


def test_palette_with_transparency(tmp_path: Path) -> None:
    indices = (np.arange(40 * 60) % 3).astype(np.uint8).reshape(40, 60)
    image = Image.fromarray(indices)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=1)
    expected = np.eye(3, dtype=np.uint8)[indices] * 255
    np.testing.assert_array_equal(load_photo(tmp_path / "plain.png").pixels, expected)
    photo = load_photo(tmp_path / "clear.png")
    np.testing.assert_array_equal(photo.pixels, expected)
    np.testing.assert_array_equal(photo.alpha, indices != 1)


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (40, 30), (255, 0, 0, 0)).save(tmp_path / "cyan.tif")
    np.testing.assert_array_equal(load_photo(tmp_path / "cyan.tif").pixels[0, 0], [0, 255, 255])
    Image.new("CMYK", (40, 30), (0, 0, 0, 128)).save(tmp_path / "grey.jpg", quality=100)
    assert np.abs(load_photo(tmp_path / "grey.jpg").pixels.astype(int) - 127).max() <= 2


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_the_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(load_photo(tmp_path / f"a{suffix}").pixels[10, 10], [255, 0, 0])


def test_multi_picture_jpeg(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(
        tmp_path / "a.mpo", save_all=True, append_images=[Image.new("RGB", (60, 40))], quality=95
    )
    assert np.abs(load_photo(tmp_path / "a.mpo").pixels.astype(int) - picture()).mean() < 4


# ---- orientation and lens


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    """The file holds the picture turned away; the tag says how to turn it back."""
    upright = picture()
    away = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: np.rot90(upright.swapaxes(0, 1), 2),
        8: np.rot90(upright, -1),
    }[orientation]
    path = tmp_path / f"a{suffix}"
    options = {"quality": 98, "subsampling": 0} if suffix == ".jpg" else {}
    Image.fromarray(np.ascontiguousarray(away)).save(path, exif=with_exif(orientation), **options)
    photo = load_photo(path)
    assert photo.size == (40, 60)
    assert np.abs(photo.pixels.astype(int) - upright).max() <= (12 if suffix == ".jpg" else 0)
    with Image.open(path) as image:
        np.testing.assert_array_equal(load_photo(image).pixels, photo.pixels)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_orientation_of_sixteen_bit_colour(tmp_path: Path, orientation: int, kind: str) -> None:
    import cv2

    pixels = np.random.default_rng(1).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    if kind == "png":
        data = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
        import struct
        import zlib

        block = with_exif(orientation).tobytes().removeprefix(b"Exif\0\0")
        chunk = (
            struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
        )
        (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])
    else:
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(
            tmp_path / "a.tif", pixels, photometric="rgb", extratags=[(274, "H", 1, orientation, True)]
        )
    expected = np.rot90(pixels, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    photo = load_photo(tmp_path / f"a.{kind}")
    assert photo.pixels.dtype == np.uint16
    np.testing.assert_array_equal(photo.pixels, expected)


def test_focal_length_from_the_35_mm_equivalent(tmp_path: Path) -> None:
    """A full-frame 36 × 24 mm picture of 600 × 400 pixels: 50 mm are 50 / 36 of its width."""
    path = tmp_path / "a.jpg"
    for orientation in (1, 6):
        Image.new("RGB", (600, 400)).save(path, exif=with_exif(orientation, FocalLengthIn35mmFilm=50))
        assert load_photo(path).focal_px == pytest.approx(600 * 50 / 36, rel=1e-3)


def test_focal_length_from_the_sensor_resolution(tmp_path: Path) -> None:
    """35 mm at 200 pixels per millimetre are 7000 pixels of the 6000-wide original, 700 of a tenth of it."""
    fields = {"FocalLength": 35.0, "FocalPlaneXResolution": 5080.0, "FocalPlaneResolutionUnit": 2}
    path = tmp_path / "a.jpg"
    Image.new("RGB", (600, 400)).save(path, exif=with_exif(ExifImageWidth=6000, **fields))
    assert load_photo(path).focal_px == pytest.approx(700)
    fields |= {"FocalPlaneXResolution": 20.0, "FocalPlaneResolutionUnit": 4}
    Image.new("RGB", (600, 400)).save(path, exif=with_exif(**fields))
    assert load_photo(path).focal_px == pytest.approx(700)


@pytest.mark.parametrize(
    "fields", [{}, {"FocalLength": 35.0}, {"FocalLengthIn35mmFilm": 0}, {"FocalLengthIn35mmFilm": 60000}]
)
def test_no_focal_length_rather_than_a_wrong_one(tmp_path: Path, fields: dict[str, float]) -> None:
    Image.new("RGB", (600, 400)).save(tmp_path / "a.jpg", exif=with_exif(**fields))
    assert load_photo(tmp_path / "a.jpg").focal_px is None


# ---- arrays


def test_arrays_and_tensors_of_every_layout() -> None:
    import torch

    pixels = picture()
    as_float = pixels / 255
    same = [
        pixels,
        pixels.transpose(2, 0, 1),
        pixels.transpose(2, 0, 1)[None],
        torch.from_numpy(pixels),
        torch.from_numpy(pixels).permute(2, 0, 1),
        torch.from_numpy(pixels).permute(2, 0, 1)[None],
        Image.fromarray(pixels),
    ]
    for source in same:
        np.testing.assert_array_equal(load_photo(source).pixels, pixels)
    close = [
        as_float,
        as_float.astype(np.float16),
        torch.from_numpy(as_float).permute(2, 0, 1)[None],
        torch.from_numpy(as_float).permute(2, 0, 1).bfloat16(),
        torch.from_numpy(as_float).requires_grad_(),
        (as_float * 65535).round().astype(">u2"),
    ]
    for source in close:
        photo = load_photo(source)
        np.testing.assert_allclose(photo.rgb, as_float, atol=3e-3)
        assert photo.rgb.dtype == np.float32
        np.testing.assert_allclose(photo.rgb8, pixels, atol=1)


def test_grey_and_alpha_arrays() -> None:
    grey = picture()[..., 0]
    np.testing.assert_array_equal(load_photo(grey).pixels, np.repeat(grey[..., None], 3, -1))
    np.testing.assert_array_equal(load_photo(grey[None]).pixels, load_photo(grey[..., None]).pixels)
    photo = load_photo(np.dstack([picture(), grey]))
    np.testing.assert_array_equal(photo.pixels, picture())
    np.testing.assert_allclose(photo.alpha, grey / 255, rtol=1e-6)


def test_tensor_and_pillow_forms_agree_with_the_pixels() -> None:
    photo = load_photo(picture())
    tensor = photo.to_tensor()
    assert tuple(tensor.shape) == (1, 3, 40, 60)
    np.testing.assert_array_equal(tensor[0].permute(1, 2, 0).numpy(), photo.rgb)
    np.testing.assert_array_equal(np.asarray(photo.to_pil()), photo.pixels)


def test_checksum_is_of_the_pixels_not_of_the_file(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    Image.fromarray(picture()).save(tmp_path / "b.bmp")
    a, b, c = (load_photo(s).sha256 for s in (tmp_path / "a.png", tmp_path / "b.bmp", picture(seed=1)))
    assert a == b != c


def test_a_photo_stays_a_photo() -> None:
    photo = load_photo(picture())
    assert load_photo(photo) is photo
    assert isinstance(photo, Photo)
    assert "60×40" in repr(photo)


# ---- what cannot be used


def float_tiff() -> bytes:
    """An intact file of three 32-bit floating channels."""
    return cv2.imencode(".tif", np.random.default_rng(0).random((40, 60, 3)).astype(np.float32))[1].tobytes()


def encoded(kind: str = "JPEG", size: tuple[int, int] = (300, 200), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(size[1], size[0])).save(buffer, kind, **options)
    return buffer.getvalue()


def small_png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


HEIC_HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("text.jpg", b"hello, this is not an image", "not an image"),
        ("noise.png", bytes(range(256)) * 10, "not an image"),
        ("empty.jpg", b"", "empty (0 bytes)"),
        ("header.jpg", encoded()[:100], "cut off"),
        ("header.png", encoded("PNG")[:20], "cut off"),
        ("magic.jpg", b"\xff\xd8\xff", "cut off within its header"),
        ("header.webp", encoded("WEBP")[:14], "cut off"),
        ("header.tif", encoded("TIFF")[:8], "cut off"),
        ("float.tif", float_tiff(), "kind of samples is not read"),
        ("dot.png", small_png(1, 1), "1×1 pixels; give an image of at least 16×16"),
        ("line.png", small_png(1, 10000), "1×10000 pixels"),
        ("strip.png", small_png(20, 10000), "strip of 20×10000"),
        ("phone.heic", HEIC_HEAD, "pillow-heif"),
        ("page.png", b"%PDF-1.4 and so on", "PDF"),
        ("light.exr", b"\x76\x2f\x31\x01" + bytes(50), "OpenEXR"),
        ("camera.nef", encoded("TIFF"), "raw"),
        ("clip.mp4", b"anything", "video"),
    ],
)
def test_unusable_files_are_one_clear_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_photo(path)
    message = str(caught.value)
    assert said in message
    assert str(path) in message
    assert "\n" not in message
    assert caught.value.hint


def test_missing_files_folders_and_addresses(tmp_path: Path) -> None:
    for source, said in [
        (tmp_path / "nowhere.jpg", "no such file"),
        (tmp_path, "is a folder"),
        ("https://example.org/a.jpg", "download it"),
    ]:
        with pytest.raises(InputError, match=said):
            load_photo(source)


def bomb(width: int, height: int) -> bytes:
    """A PNG header that promises far more pixels than the file holds."""
    import struct
    import zlib

    data = small_png(20, 20)
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def test_a_decompression_bomb_is_refused_before_decoding(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bomb(60_000, 60_000))
    with pytest.raises(InputError, match="million pixels; resize it"):
        load_photo(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (np.full((30, 40, 3), np.nan), "NaN"),
        (np.full((30, 40, 3), np.inf, np.float32), "NaN or infinite"),
        (np.full((30, 40, 3), 128.0), "scale it to"),
        (np.full((30, 40, 3), -1.0), "scale it to"),
        (np.zeros((30, 40, 3), np.int64), "int64"),
        (np.zeros((30, 40, 3), bool), "bool"),
        (np.zeros((30, 40, 7), np.uint8), "shape"),
        (np.zeros((2, 3, 30, 40), np.uint8), "not one image"),
        (np.zeros((0, 40, 3), np.uint8), "not an image"),
        (np.zeros(30, np.uint8), "not one image"),
        (np.zeros((8, 40, 3), np.uint8), "at least 16×16"),
        (17, "int is not an image"),
        (None, "NoneType is not an image"),
    ],
)
def test_unusable_arrays_are_one_clear_line(source: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_photo(source)


def test_tensors_with_nan_are_refused() -> None:
    import torch

    tensor = torch.zeros(1, 3, 30, 40)
    tensor[0, 1, 2, 3] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        load_photo(tensor)


def test_smaller_images_can_be_allowed() -> None:
    assert load_photo(np.zeros((4, 5, 3), np.uint8), min_side=4).size == (4, 5)


# ---- cut off, but partly there


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_is_used_as_far_as_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], progressive: bool
) -> None:
    whole = encoded(quality=90, progressive=progressive)
    path = tmp_path / "cut.jpg"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    photo = load_photo(path)
    assert photo.truncated
    assert photo.size == (200, 300)
    top = np.abs(photo.pixels[:80].astype(int) - picture(200, 300)[:80]).mean()
    assert top < (25 if progressive else 3)
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert str(path) in warning
    assert "cut off" in warning


def test_a_truncated_png_is_used_as_far_as_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    photo = load_photo(tmp_path / "a.png")
    assert photo.truncated
    np.testing.assert_array_equal(photo.pixels[:80], noise[:80])
    assert "cut off" in capsys.readouterr().err


def test_loading_a_damaged_file_changes_nothing_for_others(tmp_path: Path) -> None:
    from PIL import ImageFile

    (tmp_path / "a.png").write_bytes(encoded("PNG")[:-200])
    load_photo(tmp_path / "a.png")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
