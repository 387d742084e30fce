"""Pairs of photographs in the viewer: where a clicked point goes, in a real browser and without one."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vision3d.cli import main
from vision3d.errors import InputError
from vision3d.geometry.points import PointCloud
from vision3d.io.mesh import write_ply
from vision3d.io.photo import Photo
from vision3d.matches import CellDescriptors, Matches, PairDescriptors
from vision3d.viewer.matches import PairViewer, pairs_page
from vision3d.viewer.registry import items_of
from vision3d.viewer.server import Answer, PageServer

READY = "!!(window.vision3d && window.vision3d.ready)"
SIZE_A, SIZE_B = (120, 160), (150, 100)
GRID = 10, 12
STEP_A, STEP_B = (160 / 12, 12.0), (100 / 12, 15.0)


def photos() -> dict[str, Photo]:
    rng = np.random.default_rng(5)
    pictures = [
        np.asarray(Image.fromarray(rng.integers(60, 200, (6, 8, 3), dtype=np.uint8)).resize(size[::-1]))
        for size in (SIZE_A, SIZE_B)
    ]
    return {"photo": Photo(pictures[0], "a"), "photo_b": Photo(pictures[1], "b")}


def pair(**more: Any) -> Matches:
    """Matches between the middles of cells, cell i of A with cell ``partner[i]`` of B."""
    partner = np.random.default_rng(0).permutation(GRID[0] * GRID[1])
    middles = np.stack(np.meshgrid(np.arange(GRID[1]), np.arange(GRID[0])), -1).reshape(-1, 2) + 0.5
    chosen = np.arange(0, len(partner), 5)
    count = len(chosen)
    values: dict[str, Any] = {
        "points_a": middles[chosen] * STEP_A, "points_b": middles[partner[chosen]] * STEP_B,
        "similarity": np.full(count, 0.5), "confidence": np.linspace(1, 0, count),
        "mutual": np.ones(count, bool), "cycle_error": np.zeros(count), "size_a": SIZE_A, "size_b": SIZE_B,
    }  # fmt: skip
    return Matches(**{**values, **photos(), **more})


def descriptors(forbidden: int | None = None) -> tuple[PairDescriptors, np.ndarray]:
    """Descriptors by which cell i of A is most similar to cell ``partner[i]`` of B, and the partners."""
    rng = np.random.default_rng(0)
    count = GRID[0] * GRID[1]
    partner = rng.permutation(count)
    values = rng.normal(size=(count, 24))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    other = np.empty_like(values)
    other[partner] = values
    allowed = np.ones(count, bool)
    if forbidden is not None:
        allowed[forbidden] = False
    scale = float(np.abs(values).max())
    sides = [
        CellDescriptors((v / scale).astype(np.float16), GRID, (s[0] / 2, s[1] / 2), s, may)
        for v, s, may in ((values, STEP_A, np.ones(count, bool)), (other, STEP_B, allowed))
    ]
    return PairDescriptors(sides[0], sides[1], "dot", scale, "cosine", 0.05, 0), partner


def middle(cell: int, step: tuple[float, float]) -> np.ndarray:
    return (np.array([cell % GRID[1], cell // GRID[1]]) + 0.5) * step


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pair(descriptors=descriptors()[0]).save(tmp_path / "out" / "a__b")
    return tmp_path / "out" / "a__b"


# ---- in a browser


def click(page: Any, which: int, point: Any) -> dict[str, Any]:
    """Click a point of a photograph where the page draws it, and return what the page answered."""
    page.click(*page.run(f"window.vision3d.place({which}, {json.dumps([float(v) for v in point])})"))
    return page.run(
        "(() => { const a = window.vision3d.answer; return a && {...a, heat: a.heat && [...a.heat.share]}; })()"
    )


def settle(page: Any) -> np.ndarray:
    page.run("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
    return page.pixels().astype(int)


@pytest.mark.parametrize("which", [0, 1])
def test_a_click_shows_where_a_point_goes_without_a_network(page: Any, folder: Path, which: int) -> None:
    exported = folder.parent / "pair.html"
    assert main(["view", str(folder), "--export", str(exported), "--quiet"]) == 0
    page.call(
        "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
    )
    page.open(exported.as_uri())
    page.wait_for(READY)
    _, partner = descriptors()
    steps = (STEP_A, STEP_B) if which == 0 else (STEP_B, STEP_A)
    goes = partner if which == 0 else np.argsort(partner)
    for cell in (17, 33):
        answer = click(page, which, middle(cell, steps[0]) + np.array([2, -3]))
        expected = middle(goes[cell], steps[1])
        assert np.all(np.abs(np.subtract(answer["to"], expected)) <= np.array(steps[1]) / 2)
        assert int(np.nanargmax(answer["heat"])) == goes[cell]
        assert answer["similarity"] == pytest.approx(1, abs=1e-3)
        assert answer["cycle"] == 0
    # The map is bright where the point goes and dark elsewhere, and the arrow ends there.
    page.run("document.querySelector('#panel input[type=checkbox]').click()")
    with_heat = settle(page)
    x, y = page.run(f"window.vision3d.place({1 - which}, {json.dumps(expected.tolist())})")
    ring = with_heat[round(y) - 1 : round(y) + 2, round(x) + 5 : round(x) + 9].reshape(-1, 3)
    assert ((ring[:, 0] > 200) & (ring[:, 1] > 150) & (ring[:, 2] < 130)).any()
    page.run(
        "document.querySelectorAll('#panel button').forEach(b => b.textContent === 'clear' && b.click())"
    )
    plain = settle(page)

    def gained(cell: int) -> int:
        u, v = page.run(f"window.vision3d.place({1 - which}, {middle(cell, steps[1]).tolist()})")
        rows = [round(v) - 12, round(v) + 12]  # not under the marker
        return int((with_heat[rows, round(u), 0] - plain[rows, round(u), 0]).max())

    worst = int(np.nanargmin(answer["heat"]))
    assert gained(goes[33]) > 30 > 0 > gained(worst)
    assert page.run("window.vision3d.answer") is None
    assert all(url.startswith(("file:", "blob:", "data:")) for url in page.requests)
    assert not page.problems


def test_the_page_computes_what_the_method_computes(page: Any, sd_dino_folder: Path, tmp_path: Path) -> None:
    from vision3d.pipelines.sd_dino import SDDino

    coarse = np.random.default_rng(3).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((96, 72), Image.Resampling.BICUBIC))
    pipeline = SDDino.from_pretrained(sd_dino_folder, device="cpu", cache=False)
    mask = np.zeros(picture.shape[:2], bool)
    mask[10:60, 8:80] = True
    points = np.array([[12.3, 20.1], [50.0, 40.7], [70.2, 55.5], [95.9, 0.2]])
    images = picture, picture[:, ::-1].copy()
    published = pipeline.config
    uneven = replace(published, sd_weight=0.03)
    for settings in (
        {"metric": "auto"},
        {"metric": "cosine"},
        {"features": "dino", "metric": "l1"},
        {"metric": "l2_norm"},
        {"metric": "l2", "projection": "none"},
    ):
        pipeline.config = uneven if "projection" in settings else published
        found = pipeline.match(*images, points=points, masks=(None, mask), descriptors=True, **settings)
        name = "-".join(settings.values())
        found.save(tmp_path / name)
        with PairViewer(items_of([tmp_path / name]), port=0) as viewer:
            page.open(viewer.url)
            page.wait_for(READY)
            for i, point in enumerate(points):
                answer = page.run(
                    f"(() => {{ window.vision3d.ask(0, {point.tolist()}); return window.vision3d.answer; }})()"
                )
                loose = settings["metric"] == "l1"  # whose scale depends on what else is asked
                np.testing.assert_allclose(answer["to"], found.points_b[i], atol=1.0 if loose else 0.1)
                assert answer["similarity"] == pytest.approx(found.similarity[i], rel=0.01, abs=1e-3)
                if not loose:
                    assert answer["confidence"] == pytest.approx(found.confidence[i], abs=0.01)
                assert answer["cycle"] == pytest.approx(found.cycle_error[i], abs=0.1)
    assert not page.problems


def test_without_descriptors_a_click_follows_the_flow(page: Any, tmp_path: Path) -> None:
    rows, columns = np.mgrid[0 : SIZE_A[0], 0 : SIZE_A[1]] + 0.5
    flow = np.stack([-0.4 * columns, 0.2 * rows], -1)
    pair(flow_ab=flow).save(tmp_path / "pair")
    page.open(write(tmp_path / "page.html", tmp_path / "pair"))
    page.wait_for(READY)
    answer = click(page, 0, (100, 50))
    assert answer["how"] == "flow" and not answer.get("heat")
    np.testing.assert_allclose(answer["to"], [60, 60], atol=0.5)
    assert "no map of similarities" in page.run("panel.textContent")
    answer = click(page, 1, pair().points_b[3] + 1)  # there is no flow from B: the nearest match
    assert answer["how"] == "match"
    np.testing.assert_allclose(answer["to"], pair().points_a[3], atol=1e-3)
    assert not page.problems


def test_what_may_not_be_matched_to_is_never_the_answer(page: Any, tmp_path: Path) -> None:
    partner = descriptors()[1]
    pair(descriptors=descriptors(forbidden=int(partner[30]))[0]).save(tmp_path / "pair")
    page.open(write(tmp_path / "page.html", tmp_path / "pair"))
    page.wait_for(READY)
    answer = click(page, 0, middle(30, STEP_A))
    assert answer["heat"][partner[30]] is None  # NaN
    assert np.abs(np.subtract(answer["to"], middle(partner[30], STEP_B))).max() > min(STEP_B) / 2


def write(path: Path, *folders: Path) -> str:
    path.write_text(pairs_page(items_of(folders), title="pairs"))
    return path.as_uri()


def test_pairs_are_looked_at_one_by_one_live_and_exported(page: Any, folder: Path) -> None:
    pair().save(folder.parent / "c__d")
    choose = (
        "(() => { const s = document.querySelector('select[aria-label=pair]'); s.value = '1';"
        " s.dispatchEvent(new Event('change')); })()"
    )
    with PairViewer(items_of([folder.parent]), port=0) as viewer:
        for url in (viewer.url, write(folder.parent / "page.html", folder.parent)):
            page.open(url)
            page.wait_for(READY)
            assert click(page, 0, (80, 60))["how"] == "descriptors"
            page.run(choose)
            page.wait_for(f"{READY} && document.getElementById('note').textContent.startsWith('c__d')")
            assert click(page, 0, (80, 60))["how"] == "match"
    assert not [url for url in page.requests if url.startswith("http") and "127.0.0.1" not in url]
    assert not page.problems


# ---- without one


def test_saved_descriptors_and_matches_are_read_back(folder: Path) -> None:
    made, read = pair(descriptors=descriptors()[0]), Matches.load(folder)
    np.testing.assert_array_equal(read.points_b, made.points_b)
    assert read.size_b == SIZE_B and read.descriptors is not None and made.descriptors is not None
    np.testing.assert_array_equal(read.descriptors.b.values, made.descriptors.b.values)
    assert read.descriptors.b.step == pytest.approx(STEP_B)
    names = ("measure", "scale", "metric", "temperature", "reach")
    assert [getattr(read.descriptors, n) for n in names] == [getattr(made.descriptors, n) for n in names]


def test_the_page_holds_all_matches_the_drawn_ones_first(folder: Path) -> None:
    from tests.viewer.test_view import Exported

    page = Exported(pairs_page(items_of([folder]), title="pair"))
    (entry,) = page.scene["pairs"]
    table = page.array(entry["matches"])
    made = pair()
    order = np.lexsort(table.T[::-1])
    expected = np.column_stack([made.points_a, made.points_b])
    np.testing.assert_allclose(table[order][:, :4], expected[np.lexsort(expected.T[::-1])], atol=1e-4)
    assert page.data(entry["photos"][0]).startswith(b"\xff\xd8\xff")
    assert "connect-src" not in page.text and "fetch(" not in page.text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "matches.npz").unlink(), "missing"),
        (lambda f: (f / "matches.npz").write_bytes((f / "matches.npz").read_bytes()[:300]), "matches.npz is damaged"),
        (lambda f: np.savez(f / "matches.npz", points_a=np.zeros((2, 2))), "matches.npz is damaged"),
        (lambda f: (f / "descriptors.npz").write_bytes(b"PK"), "descriptors.npz is damaged"),
        (lambda f: np.savez(f / "descriptors.npz", measure="dot"), "descriptors.npz is damaged"),
        (lambda f: (f / "photo_b.jpg").write_bytes(b"no picture"), "photo_b.jpg is damaged"),
        (lambda f: (f / "result.json").write_text('{"kind": "matches", "files": {}}'), "holds no matches"),
        (lambda f: (f / "result.json").unlink(), "holds no result"),
    ],
)  # fmt: skip
def test_a_result_that_cannot_be_shown_is_one_line(
    folder: Path, damage: Any, message: str, capsys: Any
) -> None:
    damage(folder)
    for more in (["--export", str(folder / "page.html")], ["--no-open", "--port", "0"]):
        assert main(["view", str(folder), *more]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and message in lines[0]


def test_pairs_and_things_in_space_are_not_shown_together(folder: Path, capsys: Any) -> None:
    write_ply(folder.parent / "cloud.ply", PointCloud(np.float32([[0, 0, 1], [0, 1, 2]])))
    paths = [str(folder), str(folder.parent / "cloud.ply")]
    assert main(["view", *paths, "--export", str(folder.parent / "page.html")]) == 2
    assert "one by one" in capsys.readouterr().err


def test_matches_show_themselves_without_viser(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    seen: list[str] = []

    def wait(self: PairViewer) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", "/")
        seen.append(connection.getresponse().read().decode())
        raise KeyboardInterrupt

    monkeypatch.setattr("webbrowser.open", lambda url: None)
    monkeypatch.setattr(PairViewer, "wait", wait)
    monkeypatch.setitem(sys.modules, "viser", None)
    pair(descriptors=descriptors()[0]).show()
    assert '"metric":"cosine"' in seen[0]


def test_the_server_answers_this_machine_only(folder: Path) -> None:
    def status(path: str, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", viewer.port, timeout=20)
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status

    with PairViewer(items_of([folder]), port=0) as viewer:
        assert [status(path) for path in ("/", "/0", "/1", "/../etc/passwd", "/x")] == [
            200,
            200,
            404,
            404,
            404,
        ]
        assert status("/", Host="evil.example") == 403  # a name that somebody has pointed here
        assert status("/", Origin="http://evil.example") == 403
        own = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
        for address in (a for a in own if not a.startswith("127.")):
            with pytest.raises(OSError):
                socket.create_connection((address, viewer.port), timeout=5)
    time.sleep(0.1)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", viewer.port), timeout=5)


def test_what_a_page_cannot_be_given_is_said_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def get(path: str) -> Answer:
        raise ZeroDivisionError("no such thing")

    with PageServer(get, host="localhost", port=0) as server:
        connection = http.client.HTTPConnection("localhost", server.port, timeout=20)
        connection.request("GET", "/map")
        assert connection.getresponse().status == 500
    told = capsys.readouterr().err
    assert told == "warning: /map could not be answered (ZeroDivisionError: no such thing)\n"


def test_a_browser_may_go_away(capfd: pytest.CaptureFixture[str]) -> None:
    asked = threading.Event()

    def get(path: str) -> Answer:
        asked.wait(20)
        return "text/plain", bytes(50_000_000)

    with PageServer(get, host="127.0.0.1", port=0) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as browser:
            browser.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        asked.set()
        time.sleep(0.3)
    assert capfd.readouterr().err == ""


def test_descriptors_need_one_for_each_cell() -> None:
    with pytest.raises(InputError, match="10×12 cells"):
        CellDescriptors(np.zeros((7, 3), np.float16), GRID, (0, 0), (1, 1), np.ones(120, bool))
