"""Folders, patterns, lists and videos: what is in them, in which order, under which names."""

from __future__ import annotations

import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision3d.errors import InputError
from vision3d.io.images import Photo, expand_inputs, holds_many, is_video, iter_photos, load_photo
from vision3d.io.video import iter_frames


def put(path: Path, shade: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (shade, 0, 0)).save(path)
    return path


def names(source, **options) -> list[str]:
    return [name for name, _ in expand_inputs(source, **options)]


def test_folders_are_in_natural_order(tmp_path: Path) -> None:
    for name in ("img10.png", "img2.png", "IMG1.jpg", "b.webp", "notes.txt", ".hidden.png", "._b.webp"):
        if name.endswith("txt"):
            (tmp_path / name).write_text("x")
        else:
            put(tmp_path / name.lstrip("."))
            (tmp_path / name.lstrip(".")).rename(tmp_path / name)
    put(tmp_path / "b.webp")
    assert names(tmp_path) == ["b", "IMG1", "img2", "img10"]


def test_equal_stems_get_different_names(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.webp", "a_png.bmp"):
        put(tmp_path / name)
    assert names(tmp_path) == ["a", "a_png", "a_webp", "a_png_bmp"]
    other = put(tmp_path / "other" / "a.jpg")
    again = put(tmp_path / "again" / "a.jpg")
    assert names([tmp_path / "a.jpg", other, again]) == ["a", "a_jpg", "a_2"]


def test_names_differ_on_file_systems_that_ignore_case(tmp_path: Path) -> None:
    assert len({n.casefold() for n in names([put(tmp_path / "A.png"), put(tmp_path / "a.jpg")])}) == 2


def test_nested_folders_only_when_asked(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "sub" / "a.png")
    put(tmp_path / ".cache" / "a.png")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path, recursive=True) == ["a", "sub/a"]


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a1.png", "a2.png", "b.png", "sub/a3.png"):
        put(tmp_path / name)
    (tmp_path / "a4.txt").write_text("x")
    assert names(str(tmp_path / "a*")) == ["a1", "a2"]
    assert names(str(tmp_path / "**" / "a?.png")) == ["a1", "a2", "a3"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names("~/b.png") == ["b"]


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    put(tmp_path / "photo[1].png")
    assert names(tmp_path / "photo[1].png") == ["photo[1]"]
    assert not holds_many(tmp_path / "photo[1].png") and holds_many(tmp_path / "photo[12].png")


def test_a_tilde_is_a_home_or_part_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "home" / "photos" / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert holds_many("~/photos") and not holds_many("~/photos/a.png")
    put(Path("~tmp.png"))
    assert [ref.load().name for ref in iter_photos(".")] == ["~tmp"]
    assert names("~tm*.png") == ["~tmp"]
    with pytest.raises(InputError, match=r"no such file: ~none\.png"):
        load_photo("~none.png")


@pytest.mark.parametrize("recursive", [False, True])
def test_an_empty_folder(tmp_path: Path, recursive: bool) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="holds no images or videos"):
        expand_inputs(tmp_path, recursive=recursive)


def test_a_folder_of_folders_says_how_to_enter_them(tmp_path: Path) -> None:
    put(tmp_path / "sub" / "a.png")
    with pytest.raises(InputError, match="--recursive"):
        expand_inputs(tmp_path)


def test_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing matches"):
        expand_inputs(str(tmp_path / "*.jpg"))
    with pytest.raises(InputError, match="empty list"):
        expand_inputs([])
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="none of the 1 matches"):
        expand_inputs(str(tmp_path / "*"))


def test_references_load_late_and_one_by_one(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 10)
    put(tmp_path / "b.png", 20)
    refs = list(iter_photos(tmp_path))
    (tmp_path / "b.png").write_bytes(b"")
    assert refs[0].load().pixels[0, 0, 0] == 10
    with pytest.raises(InputError, match="0 bytes"):
        refs[1].load()


def test_in_memory_images_and_batches() -> None:
    import torch

    batch = torch.zeros(3, 3, 20, 30)
    batch[1] += 0.5
    pillow = Image.new("RGB", (30, 20), "red")
    photo = Photo(np.zeros((20, 30, 3), np.uint8), "mine")
    refs = list(iter_photos([batch, pillow, photo, np.ones((20, 30, 3), np.uint8)]))
    assert [ref.name for ref in refs] == ["image", "image_2", "image_3", "image_4", "mine", "image_5"]
    assert [int(ref.load().rgb8[0, 0, 0]) for ref in refs] == [0, 128, 0, 255, 0, 1]
    assert [ref.load().name for ref in refs] == [ref.name for ref in refs]
    assert photo.name == "mine"


def write_video(path: Path, frames: int = 30, size: tuple[int, int] = (64, 48), codec: str = "MJPG") -> Path:
    """A video whose frame number is its brightness, times eight."""
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, size)
    if not writer.isOpened():
        assert codec != "MJPG", "which OpenCV writes by itself"
        pytest.skip(f"this OpenCV cannot write {codec}")
    for number in range(frames):
        writer.write(np.full((size[1], size[0], 3), (number * 8 % 256, 30, 200), np.uint8))
    writer.release()
    return path


def test_video_frames_in_order_and_in_rgb(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi")
    refs = list(iter_photos(path))
    assert [ref.name for ref in refs] == [f"clip/{i:06d}" for i in range(30)]
    for number, ref in enumerate(refs):
        red, _, blue = ref.load().pixels[20, 30].astype(int)
        assert abs(red - 200) < 10
        assert abs(blue - number * 8) < 10
    assert refs[7].load().path == path


def test_every_nth_frame_up_to_a_limit(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi")
    assert [number for number, _ in iter_frames(path, every=4)] == list(range(0, 30, 4))
    assert [ref.name for ref in iter_photos(path, every=5, limit=3)] == [
        "clip/000000",
        "clip/000005",
        "clip/000010",
    ]


def test_frames_are_streamed(tmp_path: Path) -> None:
    """No more than one frame is alive at a time, whatever the length of the video."""
    path = write_video(tmp_path / "clip.avi", frames=60)
    earlier: list[weakref.ref] = []
    tracemalloc.start()
    for ref in iter_photos(path):
        photo = ref.load()
        earlier.append(weakref.ref(photo))
        del ref, photo
        assert not any(reference() for reference in earlier)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * 64 * 48 * 3


def test_a_truncated_video_is_used_up_to_where_it_decodes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_video(tmp_path / "clip.avi", frames=60, size=(160, 120))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    count = sum(1 for _ in iter_photos(path))
    assert 15 < count < 45
    said = capfd.readouterr().err
    assert f"{count} of 60 frames" in said
    assert said.count("\n") == 1


def test_a_whole_video_is_no_cause_for_warnings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, codec in (("a.avi", "MJPG"), ("b.mp4", "mp4v")):
        assert len(list(iter_photos(write_video(tmp_path / name, codec=codec)))) == 30
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 50])
def test_a_file_that_is_no_video(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"clip\.mp4"):
        list(iter_photos(path))
    assert capfd.readouterr().err == ""


def test_a_missing_video(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such video"):
        list(iter_photos(tmp_path / "clip.mov"))


def test_videos_are_known_by_their_suffix(tmp_path: Path) -> None:
    assert is_video("a/CLIP.MP4")
    assert not is_video(tmp_path / "photo.jpg")
    put(tmp_path / "a.png")
    write_video(tmp_path / "a.avi", frames=2)
    assert [ref.name for ref in iter_photos(tmp_path)] == ["a/000000", "a/000001", "a_png"]


def test_frames_of_a_video_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    put(tmp_path / "Clip" / "000001.png")
    put(tmp_path / "clip_mp4" / "deep" / "a.png")
    (tmp_path / "clip.mp4").write_bytes(b"")
    (tmp_path / "clip.jpg").write_bytes(b"")
    assert set(names(tmp_path, recursive=True)) == {"Clip/000001", "clip_mp4/deep/a", "clip", "clip_2"}
    (tmp_path / "clip_mp4").rename(tmp_path / "other")
    assert set(names(tmp_path, recursive=True)) == {"Clip/000001", "other/deep/a", "clip", "clip_mp4"}


def test_a_video_keeps_its_name_beside_its_own_results(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "clip.mp4").write_bytes(b"")
    first = names(tmp_path, recursive=True)
    put(tmp_path / "clip" / "000000" / "preview.png")
    (tmp_path / "clip" / "000000" / "result.json").write_text("{}")
    assert names(tmp_path, recursive=True) == first == ["a", "clip"]
    (tmp_path / "a.png").unlink()
    (tmp_path / "clip.mp4").unlink()
    with pytest.raises(InputError, match="earlier results"):
        names(tmp_path, recursive=True)


def test_a_path_that_cannot_be_looked_at_is_one_line() -> None:
    from vision3d.paths import as_path

    with pytest.raises(InputError, match="too long; check its name"):
        as_path("x" * 5000)
