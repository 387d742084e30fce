"""The live viewer and the exported page in a real browser: what is drawn, and what two clicks measure."""

from __future__ import annotations

import base64
import io
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import map_coordinates

import vision3d as v3
from vision3d.camera import transform_points
from vision3d.prediction import GeometryLimits
from vision3d.results import DepthPrediction
from vision3d.viewer.scene import View, view_pose

READY = "!!(window.vision3d && window.vision3d.ready)"
# Photograph pixels on the desk's top, far from depth edges, which a view from a step aside still sees.
CLICKED = [(150.0, 380.0), (400.0, 420.0)]
# The same, as far apart as the desk allows: a cloud snaps clicks to its points.
FAR_APART = [(40.0, 340.0), (520.0, 410.0)]
PANEL = 630  # pixels left of it are free of the panel
HEADER = 200  # and below this of notices


@pytest.fixture(scope="module")
def demo(example_photo: Path) -> DepthPrediction:
    """What `make demo` computes, with the embedded weights."""
    return v3.PrimeDepth.from_pretrained("mini", device="cpu")(example_photo)


@pytest.fixture(scope="module")
def folder(demo: DepthPrediction, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its result folder, small enough to be drawn by a processor."""
    path = tmp_path_factory.mktemp("maps") / "desk"
    demo.save(path, limits=GeometryLimits(max_points=60_000, max_vertices=30_000))
    return path


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    from vision3d.cli import main

    page = folder.parent / "desk.html"
    assert main(["view", str(folder), "--export", str(page), "--quiet"]) == 0
    return page


def truth(demo: DepthPrediction, pixels: list[tuple[float, float]] = CLICKED) -> np.ndarray:
    """(n, 3) points that the depth map itself puts behind photograph pixels."""
    depth = demo.to_depth()
    rows = [v - 0.5 for _, v in pixels]
    columns = [u - 0.5 for u, _ in pixels]
    z = map_coordinates(depth, [rows, columns], order=1)
    return demo.resolved_camera()[0].unproject(np.array(pixels), z)


def distance(points: np.ndarray) -> float:
    return float(np.linalg.norm(points[1] - points[0]))


def to_window(points: np.ndarray, view: View, fov: float, centre: tuple[float, float]) -> np.ndarray:
    """(n, 2) window pixels of world points for an eye with a vertical angle ``fov``."""
    local = transform_points(np.linalg.inv(view_pose(view)), points)
    focal = centre[1] / np.tan(fov / 2)
    return local[:, :2] / local[:, 2:] * focal + np.array(centre)


def page_view(page: Any) -> tuple[View, float, tuple[float, float]]:
    eye = page.run("window.vision3d.camera()")
    view = View("now", eye["position"], eye["target"], eye["up"], 0, 0)
    return view, eye["fov"], tuple(eye["centre"])


def settle(page: Any) -> None:
    """Let the page draw what has changed."""
    page.run(
        "window.vision3d.redraw(); new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"
    )


def press(page: Any, words: str) -> None:
    """Click the button, or the box of the label, that bears these words."""
    place = page.run(
        "(() => { const e = [...document.querySelectorAll('button, label')].find(e => e.textContent.trim() === "
        f"{json.dumps(words)}); const b = (e.querySelector('input') || e).getBoundingClientRect();"
        " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    page.click(*place)


def saved_picture(page: Any) -> np.ndarray:
    """(H, W, 3) uint8 of the file that the page has offered to save."""
    page.wait_for("!!window.saved && window.saved.download === 'desk.png'")
    text = page.run(
        "new Promise(done => { const i = new Image(); i.onload = () => { const c = document.createElement('canvas');"
        " c.width = i.width; c.height = i.height; c.getContext('2d').drawImage(i, 0, 0); done(c.toDataURL()); };"
        " i.src = window.saved.href; })"
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2]))).convert("RGB"))


def difference_from_photo(screen: np.ndarray, photo: np.ndarray, fov: float, centre: Any, demo: Any) -> float:
    """Mean difference, in 0 … 255, between the free part of a screen and the photograph where it must be."""
    camera = demo.resolved_camera()[0]
    focal = centre[1] / np.tan(fov / 2)
    rows, columns = np.mgrid[HEADER : screen.shape[0] : 4, 100:PANEL:4]
    u = (columns + 0.5 - centre[0]) / focal * camera.fx + camera.cx
    v = (rows + 0.5 - centre[1]) / focal * camera.fy + camera.cy
    inside = (u > 8) & (u < camera.width - 8) & (v > 8) & (v < camera.height - 8)
    assert inside.mean() > 0.5
    sampled = np.stack(
        [
            map_coordinates(photo[..., c].astype(float), [v[inside] - 0.5, u[inside] - 0.5], order=1)
            for c in range(3)
        ],
        axis=-1,
    )
    return float(np.median(np.abs(screen[rows[inside], columns[inside]].astype(float) - sampled)))


def drawn_share(screen: np.ndarray, empty: np.ndarray) -> float:
    """Share of the free part of the screen on which something is drawn that is not the background."""
    region = np.s_[HEADER:, :PANEL]
    return float((np.abs(screen[region].astype(int) - empty[region]).max(axis=-1) > 12).mean())


def test_the_exported_page_draws_and_measures_without_a_network(
    page: Any, exported: Path, demo: DepthPrediction, example_photo: Path
) -> None:
    photo = np.asarray(Image.open(example_photo).convert("RGB"))
    page.call(
        "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
    )
    page.open(exported.as_uri())
    page.wait_for(READY)
    page.run("HTMLAnchorElement.prototype.click = function () { window.saved = this; }; 0")
    assert all(url.startswith(("file:", "blob:", "data:")) for url in page.requests)

    # From where the photograph was taken, the mesh looks like the photograph.
    press(page, "photograph")
    settle(page)
    view, fov, centre = page_view(page)
    mesh = page.pixels()
    assert difference_from_photo(mesh, photo, fov, centre, demo) < 10
    for pixel in to_window(truth(demo), view, fov, centre):
        page.click(*pixel)
    assert page.run("window.vision3d.lengths") == []  # clicks measure only when asked to
    press(page, "measure")
    for pixel in to_window(truth(demo), view, fov, centre):
        page.click(*pixel)
    (measured,) = page.run("window.vision3d.lengths")
    assert measured == pytest.approx(distance(truth(demo)), rel=0.01)
    settle(page)
    shown = page.run("document.querySelector('#labels span').textContent")
    assert float(shown.split()[0]) == pytest.approx(measured, rel=1e-3)
    assert "not metric" in shown
    press(page, "screenshot")
    saved = saved_picture(page)
    assert saved.shape == (600, 960, 3)
    assert difference_from_photo(saved, photo, fov, centre, demo) < 10
    press(page, "clear")
    press(page, "measure")

    # Overlays change what is drawn; layers that are off are not drawn.
    page.run(
        "(() => { const s = document.querySelector('select[aria-label=\"lay over\"]'); s.value = 'depth';"
        " s.dispatchEvent(new Event('change')); })()"
    )
    settle(page)
    assert difference_from_photo(page.pixels(), photo, fov, centre, demo) > 30
    press(page, "overview")
    settle(page)
    with_mesh = page.pixels()
    for layer in ("mesh", "camera"):
        press(page, layer)
    settle(page)
    empty = page.pixels()
    assert drawn_share(with_mesh, empty) > 0.3

    # Points are drawn, and two clicks on them from aside measure, too.
    press(page, "points")
    settle(page)
    assert drawn_share(page.pixels(), empty) > 0.25
    press(page, "measure")
    view, fov, centre = page_view(page)
    for pixel in to_window(truth(demo, FAR_APART), view, fov, centre):
        page.click(*pixel)
    (measured,) = page.run("window.vision3d.lengths")
    assert measured == pytest.approx(distance(truth(demo, FAR_APART)), rel=0.01)

    # Turning by dragging leaves the distance to the target as it was.
    before = page.run("window.vision3d.camera()")
    page.drag((300, 500), (420, 470))
    after = page.run("window.vision3d.camera()")
    eye = [np.subtract(c["position"], c["target"]) for c in (before, after)]
    assert np.linalg.norm(eye[1]) == pytest.approx(np.linalg.norm(eye[0]))
    assert np.linalg.norm(eye[1] - eye[0]) > 0.2
    assert not page.problems


def test_the_live_viewer_draws_and_measures(
    page: Any,
    folder: Path,
    demo: DepthPrediction,
    example_photo: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("viser")
    from vision3d.viewer.live import LiveViewer
    from vision3d.viewer.registry import items_of

    photo = np.asarray(Image.open(example_photo).convert("RGB"))
    with LiveViewer(items_of([folder]), port=0) as viewer:
        assert viewer.url.startswith("http://127.0.0.1:")
        page.open(viewer.url)
        page.wait_for("!!document.querySelector('canvas')")

        def until(condition: Any, seconds: float = 150) -> Any:  # only a busy machine needs so long
            end = time.monotonic() + seconds
            while not (value := condition()):
                assert time.monotonic() < end, "nothing happened"
                time.sleep(0.3)
            return value

        client = until(lambda: next(iter(viewer.server.get_clients().values()), None))
        viewer._jump("photograph", client)
        view = next(v for v in viewer._views() if v.name == "photograph")
        fov, centre = view.vertical_fov(960 / 600), (480.0, 300.0)
        until(lambda: np.linalg.norm(client.camera.position) < 1e-3 and abs(client.camera.fov - fov) < 1e-3)
        until(lambda: difference_from_photo(page.pixels(), photo, fov, centre, demo) < 40)
        mesh = page.pixels()

        saved: list[tuple[str, bytes]] = []
        monkeypatch.setattr(client, "send_file_download", lambda name, data: saved.append((name, data)))
        viewer._screenshot(SimpleNamespace(client=client))
        ((name, data),) = saved
        picture = Image.open(io.BytesIO(data))
        assert name == "vision3d.png"
        assert picture.size == (960, 600)
        opaque = np.asarray(picture.convert("RGBA"))[..., 3] == 255
        assert opaque.all()
        assert difference_from_photo(np.asarray(picture.convert("RGB")), photo, fov, centre, demo) < 40

        viewer.measuring.value = True
        for number, pixel in enumerate(to_window(truth(demo), view, fov, centre), start=1):
            time.sleep(0.5)
            page.click(*pixel)
            until(lambda n=number: len(viewer._marks) >= n)
        (measured,) = viewer.measurements
        assert measured.length == pytest.approx(distance(truth(demo)), rel=0.01)
        assert "not metric" in str(measured)
        viewer.clear()

        mesh_layer, points_layer = (viewer.items[0].layers[i] for i in (1, 2))
        mesh_layer.visible = False
        viewer._change([mesh_layer])
        time.sleep(2)
        empty = page.pixels()
        assert drawn_share(mesh, empty) > 0.5
        points_layer.visible = True
        viewer._change([points_layer])
        until(lambda: drawn_share(page.pixels(), empty) > 0.4)
    assert not [url for url in page.requests if url.startswith("http") and "127.0.0.1" not in url]
