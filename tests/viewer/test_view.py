"""``vision3d view``, ``show()`` and the running viewer, without a browser; the page's data read back."""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import subprocess
import sys
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

import vision3d.viewer
from vision3d.camera import Intrinsics
from vision3d.cli import main
from vision3d.colour import colour_normals
from vision3d.errors import InputError, OutputError
from vision3d.geometry.mesh import TriangleMesh
from vision3d.geometry.points import PointCloud
from vision3d.io.images import Photo
from vision3d.io.mesh import write_ply
from vision3d.results import CameraPrediction, DepthPrediction, NormalPrediction
from vision3d.scene import ScenePrediction
from vision3d.viewer.pages import export_page, page_html
from vision3d.viewer.registry import items_of
from vision3d.viewer.scene import CameraLayer, Item, MeshLayer, PointsLayer

HEIGHT, WIDTH = 30, 40


def prediction() -> DepthPrediction:
    depth = np.linspace(4, 2, HEIGHT, dtype=np.float32)[:, None].repeat(WIDTH, axis=1)
    return DepthPrediction(depth, "metric depth")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prediction().save(tmp_path / "maps" / "room")
    return tmp_path / "maps" / "room"


class Exported:
    """A page read back by a decoder of its own."""

    def __init__(self, text: str) -> None:
        self.text = text
        pattern = r'<script type="application/json" id="scene">(.*?)</script>'
        self.scene = json.loads(re.search(pattern, text, re.S).group(1))
        self.blobs = dict(
            re.findall(r'<script type="application/octet-stream" id="blob(\d+)">([^<]*)</script>', text)
        )

    def layer(self, name: str, item: int = 0) -> dict[str, Any]:
        return next(x for x in self.scene["items"][item]["layers"] if x["name"] == name)

    def data(self, entry: dict[str, Any]) -> bytes:
        return base64.b64decode(self.blobs[str(entry["blob"])])

    def array(self, entry: dict[str, Any]) -> np.ndarray:
        planes = np.frombuffer(zlib.decompress(self.data(entry)), np.uint8)
        size = 1 if entry["dtype"] == "u1" else 4
        raw = planes.reshape(size, -1).T.tobytes()
        if entry["dtype"] == "f4":
            return np.frombuffer(raw, "<f4").reshape(entry["shape"])
        if entry["dtype"] == "u1":
            return np.frombuffer(raw, np.uint8).reshape(entry["shape"])
        coded = np.frombuffer(raw, "<u4").astype(np.int64)
        return np.cumsum(np.where(coded & 1, -(coded >> 1) - 1, coded >> 1)).reshape(entry["shape"])


def test_an_exported_page_holds_every_array_without_loss(folder: Path) -> None:
    (item,) = items_of([folder])
    page = Exported(page_html([item]))
    camera, mesh, points = item.layers
    assert isinstance(camera, CameraLayer)
    assert isinstance(mesh, MeshLayer)
    assert isinstance(points, PointsLayer)
    part = page.layer("mesh")["parts"][0]
    np.testing.assert_array_equal(page.array(part["positions"]), mesh.parts[0].vertices)
    np.testing.assert_array_equal(page.array(part["indices"]), mesh.parts[0].faces)
    np.testing.assert_array_equal(page.array(part["uv"]), mesh.parts[0].uv)
    assert page.data(part["texture"]).startswith(b"\xff\xd8\xff")
    entry = page.layer("points")
    np.testing.assert_array_equal(page.array(entry["positions"]), points.cloud.positions)
    np.testing.assert_array_equal(page.array(entry["colours"]), points.cloud.colours)
    np.testing.assert_array_equal(page.array(entry["looks"]["normals"]), points.looks["normals"])
    corners = np.array(page.layer("camera")["corners"])
    pixels, z = camera.camera.project(corners)
    np.testing.assert_allclose(pixels, [[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]], atol=1e-6)
    assert 0 < z[0] < 2
    assert page.scene["items"][0]["unit"] == "m"


def photograph(seed: int = 0) -> Photo:
    return Photo(np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8), "room")


@pytest.mark.parametrize("frame", ["opencv", "directx", "world"])
def test_normals_of_any_frame_lie_over_the_photograph_in_the_same_colours(tmp_path: Path, frame: str) -> None:
    directions = np.random.default_rng(1).normal(size=(HEIGHT, WIDTH, 3)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    directions[:4] = 0
    turn = np.eye(4)
    turn[:3, :3] = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    result = NormalPrediction(
        directions,
        uncertainty=np.full((HEIGHT, WIDTH), 9, np.float32),
        file_frame=frame,
        pose=turn,
        photo=photograph(),
    )
    result.save(tmp_path / "n")
    (camera,) = items_of([tmp_path / "n"])[0].layers
    assert isinstance(camera, CameraLayer)
    assert set(camera.looks) == {"normals", "relief", "uncertainty"}
    np.testing.assert_allclose(
        camera.looks["normals"].astype(int), colour_normals(directions).astype(int), atol=1
    )
    np.testing.assert_array_equal(camera.photo, photograph().rgb8)


def test_a_camera_shows_its_photograph_and_its_metric_depth(tmp_path: Path) -> None:
    camera = Intrinsics.from_focal(50.0, WIDTH, HEIGHT)
    CameraPrediction(camera=camera, photo=photograph()).save(tmp_path / "bare")
    (layer,) = items_of([tmp_path / "bare"])[0].layers
    assert isinstance(layer, CameraLayer) and layer.camera == camera and not layer.looks
    depth = DepthPrediction(prediction().depth, "metric depth", camera=camera, photo=photograph())
    CameraPrediction(camera=camera, depth=depth, photo=photograph()).save(tmp_path / "deep")
    layers = items_of([tmp_path / "deep"])[0].layers
    assert [layer.name for layer in layers] == ["camera", "mesh", "points"]
    assert all({"depth", "normals"} <= set(layer.looks) for layer in layers)


def test_a_scene_shows_every_map_on_its_surface(tmp_path: Path) -> None:
    metric = prediction().depth
    camera = Intrinsics.from_focal(50.0, WIDTH, HEIGHT)
    normals = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    normals[..., 2] = -1
    scene = ScenePrediction(
        fused=metric, metric=metric, normals=normals, relative=1 / metric, camera=camera, photo=photograph()
    )
    scene.save(tmp_path / "s")
    item = items_of([tmp_path / "s"])[0]
    layers = {layer.name: layer for layer in item.layers}
    assert set(layers) == {"camera", "mesh", "points"}
    names = {"depth", "metric depth", "relative depth", "normals", "surface normals"}
    assert set(layers["camera"].looks) == set(layers["mesh"].looks) == set(layers["points"].looks) == names
    np.testing.assert_array_equal(layers["camera"].looks["normals"], colour_normals(normals))
    np.testing.assert_array_equal(layers["camera"].photo, layers["mesh"].parts[0].texture)
    assert item.unit == "m"


def test_a_damaged_map_is_one_clear_line(tmp_path: Path) -> None:
    normals = np.tile(np.float32([0, 0, -1]), (HEIGHT, WIDTH, 1))
    NormalPrediction(normals).save(tmp_path / "n")
    np.save(tmp_path / "n" / "normals.npy", normals[1:])
    with pytest.raises(InputError, match=r"normals\.npy is"):
        _ = items_of([tmp_path / "n"])[0].layers


def test_a_page_names_nothing_outside_of_itself(folder: Path) -> None:
    text = page_html(items_of([folder]))
    for word in (
        "http:",
        "https:",
        "//cdn",
        "src=",
        "@import",
        "url(",
        "fetch(",
        "XMLHttpRequest",
        "import(",
    ):
        assert word not in text, word
    assert "default-src 'none'" in text


def test_a_name_cannot_break_out_of_the_page() -> None:
    cloud = PointCloud(np.float32([[0, 0, 1], [0, 1, 1]]))
    evil = "</script><script>alert(1)</script>{{script}}"
    layer = PointsLayer(name=evil, cloud=cloud)
    page = Exported(page_html([Item(evil, lambda: [layer], note=evil)], title=evil))
    assert page.scene["title"] == page.scene["items"][0]["name"] == evil
    assert "<script>alert" not in page.text


def test_large_clouds_are_thinned_evenly() -> None:
    line = np.zeros((10_000, 3), np.float32)
    line[:, 0] = np.arange(10_000)
    layer = PointsLayer(name="points", cloud=PointCloud(line))
    item = Item("line", lambda: [layer])
    full, thin = (Exported(page_html([item], max_points=n)).layer("points") for n in (10_000, 100))
    kept = Exported(page_html([item], max_points=100)).array(thin["positions"])[:, 0]
    assert len(kept) == 100
    assert np.ptp(np.diff(kept)) <= 1
    assert (kept[0], kept[-1]) == (0, 9999)
    assert thin["size"] == pytest.approx(10 * full["size"], rel=0.01)


def test_only_one_of_several_photographs_is_visible_but_all_plain_files(folder: Path, tmp_path: Path) -> None:
    prediction().save(folder.parent / "second")
    trimesh.creation.box().export(tmp_path / "box.glb")
    page = Exported(page_html(items_of([folder.parent, tmp_path / "box.glb"])))
    assert [(i["name"], i["visible"]) for i in page.scene["items"]] == [
        ("room", True),
        ("second", False),
        ("box.glb", True),
    ]


# ---- the verb


def test_the_verb_exports_and_reports(folder: Path, tmp_path: Path, capsys: Any) -> None:
    page = tmp_path / "new" / "room.html"
    assert main(["view", str(folder), "--export", str(page), "--background", "day", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bytes"] == page.stat().st_size
    assert report["items"] == ["room"]
    assert Exported(page.read_text()).scene["background"] == "day"
    assert main(["view", str(folder), "--export", str(page)]) == 0
    assert "opens offline" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/nowhere"], "no such file or folder"),
        (["{tmp}"], "holds no result"),
        (["{tmp}/text.txt"], "no file that can be viewed"),
        (["{tmp}/bad.glb"], "cannot be read"),
        (["{room}", "--export", "{tmp}/page.png"], "ends in .html"),
        (["{room}", "--point-size", "0"], "positive"),
        (["{room}", "--max-points", "0"], "1 or more"),
        (["{room}", "--port", "99999"], "port 99999"),
        (["{room}", "--host", "no.such.host.invalid"], "unknown"),
        (["{room}", "--host", "203.0.113.7"], "cannot listen"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(
    folder: Path, tmp_path: Path, arguments: list[str], message: str, capsys: Any
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "text.txt").write_text("x")
    (empty / "bad.glb").write_bytes(b"glTFxxxx")
    words = [word.format(tmp=empty if "{tmp}" in word else "", room=folder) for word in arguments]
    if words == [str(empty)]:
        (empty / "bad.glb").unlink()
    if "--export" not in words and "--host" not in words and "--port" not in words:
        words += ["--export", str(tmp_path / "page.html")]
    assert main(["view", *words, "--no-open"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out
    assert not (tmp_path / "page.html").exists()


def test_a_page_is_written_whole_or_not_at_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    page.write_text("earlier")
    items = items_of([folder])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vision3d.io.files.fsync_path", full)
    with pytest.raises(OutputError, match="disk is full"):
        export_page(items, page)
    monkeypatch.undo()
    assert page.read_text() == "earlier"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["maps", "page.html"]
    (folder / "points.ply").unlink()
    with pytest.raises(InputError, match=r"points.ply is missing"):
        export_page(items_of([folder]), page)
    assert page.read_text() == "earlier"


def test_exporting_needs_neither_viser_nor_torch(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('viser', 'torch'): raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from vision3d.cli import main\n"
        f"assert main(['view', {str(folder)!r}, '--export', {str(tmp_path / 'a.html')!r}]) == 0\n"
        f"sys.exit(main(['view', {str(folder)!r}, '--no-open']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (tmp_path / "a.html").exists(), done.stderr
    assert done.returncode == 2
    assert done.stderr.strip().endswith("pip install 'vision3d[viz]'")


def test_the_verb_runs_until_interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("viser")
    from vision3d.viewer.live import LiveViewer

    seen = {}

    def wait(self: LiveViewer) -> None:
        with urllib.request.urlopen(self.url, timeout=20) as answer:
            seen["page"] = answer.read()
        seen["port"] = self.port
        raise KeyboardInterrupt

    monkeypatch.setattr(LiveViewer, "wait", wait)
    assert main(["view", str(folder), "--no-open", "--port", "0"]) == 0
    assert b"<html" in seen["page"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"http://127.0.0.1:{seen['port']}" in captured.err
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", seen["port"]), timeout=5)


# ---- the running viewer


@pytest.fixture
def viewer(folder: Path) -> Any:
    pytest.importorskip("viser")
    from vision3d.viewer.live import LiveViewer

    prediction().save(folder.parent / "second")
    with LiveViewer(items_of([folder.parent]), port=0) as running:
        yield running


def test_it_listens_on_loopback_only(viewer: Any) -> None:
    own = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    others = [address for address in own if not address.startswith("127.")]
    with socket.create_connection(("127.0.0.1", viewer.port), timeout=5):
        pass
    for address in others:
        with pytest.raises(OSError):
            socket.create_connection((address, viewer.port), timeout=5)


def test_other_sites_pages_see_nothing(viewer: Any) -> None:
    import viser
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect
    from websockets.typing import Subprotocol

    def first_message(**more: Any) -> bytes | str:
        own = Subprotocol(f"viser-v{viser.__version__}")
        with connect(f"ws://127.0.0.1:{viewer.port}", subprotocols=[own], **more) as socket_:
            return socket_.recv(timeout=20)

    assert first_message() and first_message(origin=f"http://127.0.0.1:{viewer.port}")
    for more in (
        {"origin": "http://evil.example"},
        {"origin": f"http://127.0.0.1:{viewer.port + 1}"},
        {"additional_headers": {"Host": "evil.example"}},  # a name that somebody has pointed here
    ):
        with pytest.raises(InvalidStatus, match="403"):
            first_message(**more)
    page = http.client.HTTPConnection("127.0.0.1", viewer.port, timeout=20)
    page.request("GET", "/", headers={"Host": "evil.example"})
    assert page.getresponse().status == 403


def test_a_taken_port_is_left_to_its_owner(folder: Path) -> None:
    pytest.importorskip("viser")
    from vision3d.viewer.live import check_address

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < check_address("127.0.0.1", port) <= port + 99
        assert port < check_address("localhost", port) <= port + 99


def test_two_clicks_measure(viewer: Any) -> None:
    camera = prediction().resolved_camera()[0]
    (ray_a, ray_b) = camera.unproject([[10.5, 8.5], [30.5, 20.5]], 1.0)
    viewer.click(np.zeros(3), ray_a)
    assert not viewer.measurements
    viewer.click(np.zeros(3), np.array([0, -1.0, 0.01]))  # into the sky: nothing is hit, nothing is lost
    viewer.click(np.zeros(3), ray_b)
    (measured,) = viewer.measurements
    depth = prediction().depth
    expected = np.linalg.norm(ray_a * depth[8, 10] - ray_b * depth[20, 30])
    assert measured.length == pytest.approx(expected, rel=1e-3)
    assert str(measured) == f"{expected:.4g} m"
    viewer.clear()
    assert not viewer.measurements


def test_what_is_hidden_is_neither_read_nor_hit(viewer: Any) -> None:
    first, second = viewer.items
    assert first.loaded
    assert not second.loaded
    for layer in first.layers:
        layer.visible = False
    viewer.click(np.zeros(3), np.array([0, 0, 1.0]))
    viewer.click(np.zeros(3), np.array([0.1, 0, 1.0]))
    assert not viewer.measurements


def test_opacity_and_overlays_are_baked_into_what_is_sent(viewer: Any) -> None:
    mesh = viewer.items[0].layers[1]
    before = mesh.handles[0].glb_data
    mesh.send()
    assert mesh.handles[0].glb_data == before
    mesh.opacity = 0.5
    mesh.send()
    assert b'"alphaMode":"BLEND"' in mesh.handles[0].glb_data
    viewer.look, mesh.opacity = "normals", 1.0
    mesh.send()
    after = mesh.handles[0].glb_data
    assert b"BLEND" not in after
    picture = np.asarray(
        trimesh.load_scene(trimesh.util.wrap_as_stream(after), file_type="glb")
        .dump()[0]
        .visual.material.baseColorTexture
    )
    looks = mesh.layer.looks["normals"]
    assert np.abs(picture.astype(int) - looks).mean() < 4

    points = viewer.items[0].layers[2]
    points.visible, points.opacity = True, 0.25
    points.send()
    assert 0.1 < len(points.handles[0].points) / len(points.layer.cloud) < 0.4
    viewer.point_scale, size = 3.0, points.handles[0].point_size
    points.send()
    assert points.handles[0].point_size == pytest.approx(3 * size)


def test_a_photograph_is_hidden_from_whoever_stands_where_it_was_taken(viewer: Any) -> None:
    camera = viewer.items[0].layers[0]
    viewer._moved(np.array([0, 0, -1.5]))
    assert camera.on
    viewer._moved(np.array([0, 0, 0.01]))
    assert not camera.on
    viewer._moved(np.array([1.0, 0, -1.5]))
    assert camera.on


# ---- Python


def test_results_show_themselves_in_the_viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("viser")
    from vision3d.viewer.live import LiveViewer

    opened, shown = [], []
    monkeypatch.setattr("webbrowser.open", opened.append)

    def wait(self: LiveViewer) -> None:
        shown.extend(layer.name for layer in self.items[0].item.layers)
        raise KeyboardInterrupt

    monkeypatch.setattr(LiveViewer, "wait", wait)
    prediction().show()
    assert shown == ["camera", "mesh", "points"]
    assert len(opened) == 1
    assert opened[0].startswith("http://127.0.0.1:")


def test_results_show_themselves_as_a_page_without_viser(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setitem(sys.modules, "viser", None)
    prediction().show()
    path = Path(urllib.request.url2pathname(opened[0].removeprefix("file://")))
    assert len(Exported(path.read_text()).scene["items"][0]["layers"]) == 3
    path.unlink()
    path.parent.rmdir()


def test_meshes_and_points_in_memory_are_exported(tmp_path: Path) -> None:
    triangle = TriangleMesh(np.float32([[0, 0, 1], [1, 0, 1], [0, 1, 1]]), np.int32([[0, 1, 2]]))
    cloud = PointCloud(np.float32([[0, 0, 1], [0, 1, 2]]))
    path = vision3d.viewer.export(triangle, cloud, path=tmp_path / "page.html", title="both")
    page = Exported(path.read_text())
    assert page.scene["title"] == "both"
    assert page.layer("mesh")["parts"][0]["positions"]["shape"] == [3, 3]
    np.testing.assert_array_equal(page.array(page.layer("points", 1)["positions"]), cloud.positions)
    write_ply(tmp_path / "cloud.ply", cloud)
    assert main(["view", str(tmp_path), "--export", str(tmp_path / "folder.html"), "--quiet"]) == 0


def test_what_comes_with_a_result_is_no_markup_in_the_panel() -> None:
    pytest.importorskip("viser")
    from vision3d.viewer.live import as_plain, sendable

    assert as_plain("<img src=x> *a*\n# b_c") == r"\<img src\=x\> \*a\* \# b\_c"
    assert as_plain(sendable("caf\udce9 größe 2 m")) == r"caf\? größe 2 m"
