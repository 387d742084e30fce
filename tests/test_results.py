"""Results: what is written, that it reads back, that it is all or nothing, and when it counts as complete."""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from vision3d.camera import Intrinsics
from vision3d.errors import InputError, OutputError
from vision3d.io.depth import read_depth_png
from vision3d.io.images import Photo
from vision3d.prediction import GeometryLimits, Prediction, Provenance, Writer, is_complete, plain
from vision3d.results import VIEWING_RANGE, DepthPrediction

STANDARD = ["depth.npy", "depth.png", "preview.png", "points.ply", "mesh.glb"]


def photo(height: int = 60, width: int = 80, focal: float | None = 70.0) -> Photo:
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 3, columns * 3, (rows + columns) % 50 * 5], axis=-1).astype(np.uint8)
    return Photo(pixels, "scene", Path("/somewhere/scene.jpg"), focal)


def scene(height: int = 60, width: int = 80) -> np.ndarray:
    """Inverse depth of a floor with a box on it: larger below, a step at the box."""
    rows = np.mgrid[:height, :width][0]
    inverse = 0.2 + 0.6 * rows / height
    inverse[height // 4 : height // 2, width // 3 : width // 2] = 0.9
    return inverse.astype(np.float32)


def prediction(**changes: Any) -> DepthPrediction:
    fields: dict[str, Any] = {
        "depth": scene(),
        "space": "affine-invariant inverse depth",
        "photo": photo(),
        "provenance": Provenance("Test", "none", "ab12", {"max_size": 64, "tile": None}, seed=3),
    }
    return DepthPrediction(**(fields | changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_all_files_are_written_and_named_in_the_record(tmp_path: Path) -> None:
    result = prediction()
    files = result.save(tmp_path / "out" / "scene")
    assert [p.name for p in files] == [*STANDARD, "result.json"]
    assert sorted(p.name for p in (tmp_path / "out" / "scene").iterdir()) == sorted(p.name for p in files)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["scene"]
    record = json.loads(files[-1].read_text(encoding="utf-8"))
    assert list(record["files"]) == STANDARD
    for path in files[:-1]:
        data = path.read_bytes()
        assert record["files"][path.name]["bytes"] == len(data)
        assert record["files"][path.name]["sha256"] == hashlib.sha256(data).hexdigest()


def test_the_record_tells_conventions_and_provenance(tmp_path: Path) -> None:
    record = json.loads(prediction().save(tmp_path)[-1].read_text(encoding="utf-8"))
    expected = {
        "kind": "depth",
        "method": "Test",
        "weights": "none",
        "weights_sha256": "ab12",
        "settings": {"max_size": 64, "tile": None},
        "seed": 3,
        "space": "affine-invariant inverse depth",
        "unit": None,
        "width": 80,
        "height": 60,
    }
    assert expected.items() <= record.items()
    assert record["version"]
    assert record["input"]["name"] == "scene.jpg"
    assert record["camera"]["source"] == "EXIF focal length"
    assert record["camera"]["fx"] == 70
    assert "not metric" in record["conventions"]["geometry"]
    assert "/somewhere" not in json.dumps(record)


def test_depth_reads_back(tmp_path: Path) -> None:
    result = prediction()
    result.save(tmp_path)
    saved = np.load(tmp_path / "depth.npy")
    assert saved.dtype == np.float32
    np.testing.assert_array_equal(saved, scene())
    np.testing.assert_allclose(read_depth_png(tmp_path / "depth.png"), scene(), atol=1e-5)
    with Image.open(tmp_path / "depth.png") as image:
        assert image.mode == "I;16"
        assert image.info["space"] == result.space
        record = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
        assert float(image.info["scale"]) == record["depth_png"]["scale"]
        assert float(image.info["offset"]) == record["depth_png"]["offset"]


def test_further_formats(tmp_path: Path) -> None:
    import trimesh

    files = prediction(segmentation=np.full((60, 80), 7, np.uint8)).save(tmp_path, ["EXR", ".npz", "obj"])
    names = {p.name for p in files}
    assert names >= {"depth.exr", "depth.npz", "mesh.obj", "mesh.mtl", "mesh.jpg", "segmentation.png"}
    assert set(json.loads(files[-1].read_text(encoding="utf-8"))["files"]) == names - {"result.json"}
    with np.load(tmp_path / "depth.npz") as arrays:
        np.testing.assert_array_equal(arrays["depth"], scene())
        np.testing.assert_array_equal(arrays["K"], Intrinsics.from_focal(70, 80, 60).K)
        assert str(arrays["space"]) == "affine-invariant inverse depth"
    with Image.open(tmp_path / "segmentation.png") as image:
        np.testing.assert_array_equal(np.asarray(image), 7)
    obj = trimesh.load(tmp_path / "mesh.obj", process=False, force="mesh")
    (glb,) = trimesh.load(tmp_path / "mesh.glb", process=False).geometry.values()
    assert len(obj.faces) == len(glb.faces)
    np.testing.assert_allclose(obj.vertices[obj.faces], glb.vertices[glb.faces], atol=1e-5)
    with pytest.raises(InputError, match="format 'stl' for depth; choose from exr, npz, obj"):
        prediction().save(tmp_path / "new", ["stl"])
    assert not (tmp_path / "new").exists()


def test_equal_results_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        prediction(segmentation=np.full((60, 80), 7, np.uint8)).save(tmp_path / name, ["exr", "npz", "obj"])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_points_lie_on_the_pixels_rays_with_the_photos_colours(tmp_path: Path) -> None:
    from plyfile import PlyData

    prediction().save(tmp_path)
    vertex = PlyData.read(tmp_path / "points.ply")["vertex"]
    points = np.stack([vertex[n] for n in "xyz"], axis=-1)
    pixels, z = Intrinsics.from_focal(70, 80, 60).project(points)
    columns, rows = np.floor(pixels).astype(int).T
    np.testing.assert_allclose(z, prediction().to_depth()[rows, columns], rtol=1e-5)
    colours = np.stack([vertex[n] for n in ("red", "green", "blue")], axis=-1)
    np.testing.assert_array_equal(colours, photo().pixels[rows, columns])


def test_points_and_vertices_stay_below_their_limits(tmp_path: Path) -> None:
    import trimesh
    from plyfile import PlyData

    prediction().save(tmp_path, limits=GeometryLimits(max_points=500, max_vertices=300, max_texture=32))
    assert 300 < len(PlyData.read(tmp_path / "points.ply")["vertex"].data) <= 500
    (mesh,) = trimesh.load(tmp_path / "mesh.glb", process=False).geometry.values()
    assert 100 < len(mesh.vertices) <= 300
    assert max(mesh.visual.material.baseColorTexture.size) == 32


# ---- replacing and failing


def test_saving_again_replaces_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    prediction().save(tmp_path, ["exr", "obj"])
    (tmp_path / "notes.txt").write_text("mine")
    prediction(depth=scene() * 2).save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*STANDARD, "result.json", "notes.txt"])
    np.testing.assert_array_equal(np.load(tmp_path / "depth.npy"), scene() * 2)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, ""), KeyboardInterrupt(), ValueError("bug")])
def test_a_failing_writer_leaves_the_earlier_result_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    folder = tmp_path / "scene"
    prediction().save(folder)
    before = contents(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("vision3d.io.mesh.write_glb", fail)
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        prediction(depth=scene() * 2).save(folder)
    assert contents(tmp_path) == before
    with pytest.raises(expected):
        prediction().save(tmp_path / "new")
    assert contents(tmp_path) == before


@dataclass(eq=False, repr=False)
class Other(Prediction):
    """Another kind of result, as later ones will be."""

    kind: ClassVar[str] = "other"
    value: float = 0.0

    @property
    def size(self) -> tuple[int, int]:
        return 20, 30

    def writers(self, formats: tuple[str, ...], limits: GeometryLimits) -> dict[str, tuple[str, Writer]]:
        return {"value.txt": ("the value", lambda path: path.write_text(str(self.value)) and None)}

    def describe(self) -> dict[str, Any]:
        return {"value": self.value}

    def preview(self) -> Image.Image:
        return Image.new("RGB", (3, 2))


def test_other_kinds_share_the_machinery_but_not_the_folder(tmp_path: Path) -> None:
    files = Other(4.5).save(tmp_path / "a")
    assert [p.name for p in files] == ["value.txt", "result.json"]
    assert is_complete(tmp_path / "a", Other(4.5).fingerprint)
    with pytest.raises(OutputError, match="already holds a result of kind 'other'"):
        prediction().save(tmp_path / "a")
    assert sorted(contents(tmp_path / "a")) == ["result.json", "value.txt"]


# ---- complete or not


def test_a_saved_result_is_complete(tmp_path: Path) -> None:
    result = prediction()
    result.save(tmp_path, ["exr"])
    mine = result.provenance.fingerprint(photo())
    assert mine == result.fingerprint
    assert is_complete(tmp_path, mine)
    assert is_complete(tmp_path, mine, ["exr"])
    assert not is_complete(tmp_path, mine, ["exr", "npz"])
    assert not is_complete(tmp_path, "another")
    assert not is_complete(tmp_path / "nowhere", mine)


@pytest.mark.parametrize("name", [*STANDARD, "result.json"])
def test_a_damaged_result_is_not_complete(tmp_path: Path, name: str) -> None:
    result = prediction()
    result.save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-3])
    assert not is_complete(tmp_path, result.fingerprint)
    if name != "result.json":
        (tmp_path / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert not is_complete(tmp_path, result.fingerprint)
    (tmp_path / name).unlink()
    assert not is_complete(tmp_path, result.fingerprint)
    (tmp_path / name).write_bytes(whole)
    assert is_complete(tmp_path, result.fingerprint)


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"format": 1}', '{"files": 3, "format": 1}'])
def test_a_strange_record_is_not_complete(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    assert not is_complete(tmp_path, "x")
    (tmp_path / "result.json").write_text('{"format": 1, "fingerprint": "x", "files": {"a": 1}}')
    assert not is_complete(tmp_path, "x")


def test_the_fingerprint_depends_on_everything_that_matters_and_on_nothing_else() -> None:
    base = Provenance("M", "w", "00", {"a": (1, 2)}, seed=0)
    same = [base, replace(base, settings={"a": [1, 2]}), replace(base, version="99")]
    assert len({p.fingerprint(photo()) for p in same}) == 1
    moved = replace(photo(), path=Path("/elsewhere/b.png"), name="b")
    assert base.fingerprint(moved) == base.fingerprint(photo())
    others = [
        replace(base, method="N"),
        replace(base, weights_sha256="01"),
        replace(base, settings={"a": [1, 3]}),
        replace(base, seed=1),
    ]
    prints = [p.fingerprint(photo()) for p in [base, *others]]
    prints += [base.fingerprint(photo(focal=71.0)), base.fingerprint(photo(61)), base.fingerprint(None)]
    assert len(set(prints)) == len(prints)


def test_settings_of_any_type_become_json() -> None:
    value = {"path": Path("a/b"), "array": np.arange(3), "bad": float("nan"), 3: {np.float32(1.5), "x"}}
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {
        "path": str(Path("a/b")),
        "array": [0, 1, 2],
        "bad": "nan",
        "3": [1.5, "x"],
    }


# ---- meaning


def test_depth_to_look_at_is_positive_and_keeps_the_order() -> None:
    near, far = VIEWING_RANGE
    for space, sign in (("affine-invariant inverse depth", -1), ("affine-invariant depth", 1)):
        values = scene() * 40 - 300  # any scale and shift
        depth = prediction(depth=values, space=space).to_depth()
        assert depth.min() == pytest.approx(near)
        assert depth.max() == pytest.approx(far, rel=1e-5)
        assert np.corrcoef(np.argsort(depth.ravel()).argsort(), values.ravel())[0, 1] * sign > 0.9


def test_planes_stay_planes_in_the_depth_to_look_at() -> None:
    """Inverse depth of a plane is linear in the pixel, and stays so under scale and shift."""
    rows, columns = np.mgrid[:60, :80]
    result = prediction(depth=0.3 + 0.01 * rows - 0.002 * columns)
    points = result.points().positions.astype(np.float64)
    centred = points - points.mean(axis=0)
    assert np.linalg.svd(centred, compute_uv=False)[2] < 1e-4 * np.abs(centred).max() * len(points) ** 0.5


def test_metric_depth_is_left_as_it_is() -> None:
    depth = np.full((60, 80), 2.5)
    depth[0], depth[1], depth[2] = np.inf, 0, np.nan
    result = prediction(depth=depth, space="metric depth")
    assert result.unit == "m"
    np.testing.assert_array_equal(result.usable(), np.arange(60)[:, None] * np.ones(80) > 2)
    np.testing.assert_array_equal(result.to_depth()[3:], np.float32(2.5))
    assert np.isnan(result.to_depth()[:3]).all()
    assert len(result.points()) == 57 * 80
    assert (result.mesh().vertices[:, 2] == 2.5).all()


def test_the_camera_comes_from_the_result_else_from_exif_else_it_is_assumed() -> None:
    given = Intrinsics.from_fov(40, 80, 60)
    assert prediction(camera=given, camera_source="predicted").resolved_camera() == (given, "predicted")
    # EXIF is for the photo's pixels; the result may have others.
    camera, source = prediction(photo=photo(120, 160, focal=140)).resolved_camera()
    assert (camera, source) == (Intrinsics.from_focal(70, 80, 60), "EXIF focal length")
    camera, source = prediction(photo=photo(focal=None)).resolved_camera()
    assert camera.fov_x == pytest.approx(55)
    assert source.startswith("assumed: 55°")


def test_near_is_red_and_far_is_blue_in_the_preview() -> None:
    for space, depth in (
        ("affine-invariant inverse depth", scene()),
        ("affine-invariant depth", 1 - scene()),
        ("metric depth", 1 / scene()),
    ):
        preview = np.asarray(prediction(depth=depth, space=space).preview())
        assert preview.shape == (60, 80 * 2 + 8, 3)
        np.testing.assert_array_equal(preview[:, :80], photo().pixels)
        red, _, blue = preview[20, 80 + 8 + 32].astype(int)  # the box
        assert red > blue + 50
        red, _, blue = preview[0, -1].astype(int)  # the floor's far end
        assert blue > red + 50


def test_invalid_pixels_are_grey_and_left_out(tmp_path: Path) -> None:
    valid = np.ones((60, 80), bool)
    valid[:30] = False
    result = prediction(valid=valid)
    result.save(tmp_path)
    assert (np.asarray(result.preview())[:30, 88:] == 128).all()
    assert len(result.points()) == 30 * 80
    assert np.isnan(read_depth_png(tmp_path / "depth.png")[:30]).all()
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["valid_share"] == 0.5


def test_a_result_with_nothing_valid_still_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = prediction(depth=np.full((60, 80), np.nan)).save(tmp_path)
    assert [p.name for p in files] == ["depth.npy", "depth.png", "preview.png", "points.ply", "result.json"]
    assert "no mesh" in capsys.readouterr().err


def test_a_constant_result_saves(tmp_path: Path) -> None:
    prediction(depth=np.full((60, 80), 3.0)).save(tmp_path)
    assert (tmp_path / "mesh.glb").stat().st_size > 1000


def test_a_result_without_a_photo_saves(tmp_path: Path) -> None:
    assert len(prediction(photo=None).save(tmp_path)) == 6


def test_it_prints_as_something_a_person_understands() -> None:
    text = repr(prediction())
    for part in ("80×60", "affine-invariant inverse depth", "by Test (none)", "EXIF"):
        assert part in text
    assert "\n" not in text


def test_notebooks_show_the_preview() -> None:
    assert prediction()._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": np.zeros((2, 60, 80))},
        {"depth": np.zeros((0, 80))},
        {"space": "depth"},
        {"valid": np.ones((6, 8), bool)},
        {"segmentation": np.ones((6, 8), np.uint8)},
        {"camera": Intrinsics.from_fov(60, 60, 80)},
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        prediction(**changes)
