"""Objects marked by hand: the masks that marks mean, and the page on which they are made."""

from __future__ import annotations

import http.client
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vision3d.cli import main
from vision3d.errors import InputError
from vision3d.io.photo import Photo
from vision3d.marks import Mark, mask_of_marks
from vision3d.viewer.clicking import MaskPage

READY = "!!(window.vision3d && window.vision3d.ready && !window.vision3d.busy)"


def two_colours(seed: int, size: tuple[int, int] = (150, 200)) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture of an ellipse on a ground, and the ellipse (H, W) bool."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    inside = ((rows - 80) / 45) ** 2 + ((columns - 90) / 60) ** 2 < 1
    colours = np.where(inside[..., None], [200, 90, 60], [60, 110, 170])
    return np.clip(colours + rng.normal(0, 8, (*size, 3)), 0, 255).astype(np.uint8), inside


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("scale", [1, 6])
def test_one_click_finds_what_one_colour_sets_apart(scale: int) -> None:
    image, inside = two_colours(0)
    image, inside = (
        np.kron(x, np.ones((scale, scale) + (1,) * (x.ndim - 2), x.dtype)) for x in (image, inside)
    )
    clicked = Mark("object", np.array([[90, 80]]) * scale, 5 * scale)
    assert overlap(mask_of_marks(image, [clicked]), inside) > 0.95


def test_an_outline_bounds_the_object_and_strokes_correct_it() -> None:
    image, inside = two_colours(1)
    image[20:60, 160:190] = [200, 90, 60]  # something else of its colour
    loop = Mark("outline", np.array([[20, 20], [155, 20], [155, 135], [20, 135]]))
    assert overlap(mask_of_marks(image, [loop]), inside) > 0.95
    both = [Mark("object", np.array([[90, 80]]), 5), Mark("object", np.array([[175, 40]]), 5)]
    other = inside.copy()
    other[20:60, 160:190] = True
    assert overlap(mask_of_marks(image, both), other) > 0.95
    wide = Mark("outline", np.array([[15, 10], [197, 10], [197, 140], [15, 140]]))
    assert overlap(mask_of_marks(image, [wide]), other) > 0.95
    painted = Mark("background", np.array([[175, y] for y in range(20, 60)]), 34)
    assert overlap(mask_of_marks(image, [wide, painted]), inside) > 0.95


def test_marks_without_an_object_and_an_object_without_a_background() -> None:
    image, _ = two_colours(2)
    assert not mask_of_marks(image, []).any()
    assert not mask_of_marks(image, [Mark("background", np.array([[5, 5]]), 4)]).any()
    assert mask_of_marks(np.full((40, 50, 3), 90, np.uint8), [Mark("object", np.array([[9, 9]]), 3)]).all()
    assert mask_of_marks(image, [Mark("object", np.array([[-30, 500], [90, 80]]), 5)]).any()


@pytest.mark.parametrize(
    ("kind", "points", "width"),
    [("lasso", [[1, 2]], 1), ("object", [], 1), ("object", [[1, np.nan]], 1), ("object", [[1, 2]], -1)],
)
def test_marks_that_mean_nothing_are_refused(kind: Any, points: Any, width: float) -> None:
    with pytest.raises(InputError):
        Mark(kind, np.array(points), width)


def test_the_page_refuses_what_it_did_not_send() -> None:
    image, inside = two_colours(3)

    def ask(path: str, question: Any, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=60)
        body = question if isinstance(question, str) else json.dumps(question)
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    mark = {"kind": "object", "points": [[90, 80]], "width": 5}
    with MaskPage([Photo(image, "one")], port=0) as page:
        assert ask("/done", {"marks": [[mark]]}, Origin="http://evil.example")[0] == 403
        for path, question in (
            ("/mask", "no json"),
            ("/mask", {"photo": 1, "marks": []}),
            ("/mask", {"photo": 0, "marks": [{"kind": "object"}]}),
            ("/mask", []),
            ("/done", {"marks": []}),
            ("/done", {"marks": [[]]}),
        ):
            status, text = ask(path, question)
            assert status == 400 and text and b"Traceback" not in text
        status, data = ask("/mask", {"photo": 0, "marks": [mark]})
        veil = np.asarray(Image.open(io.BytesIO(data)))
        assert status == 200 and overlap(veil[..., 3] != veil[0, 0, 3], inside) > 0.95
        assert ask("/done", {"marks": [[mark]]})[0] == 200
        (mask,) = page.wait()
    assert overlap(mask, inside) > 0.95


def test_clicked_masks_swap_and_are_saved_for_the_next_time(
    page: Any, sd_dino_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("VISION3D_HOME", str(tmp_path / "home"))
    insides = []
    for seed, name in ((4, "a"), (5, "b")):
        image, inside = two_colours(seed)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        insides.append(inside)
    seen: dict[str, Any] = {}

    def mark(url: str) -> None:
        """What a person does on the page."""
        try:
            page.open(url)
            page.wait_for(READY)

            def at(photo: int, x: int, y: int) -> Any:
                return page.run(f"window.vision3d.place({photo}, [{x}, {y}])")

            press = (
                "[...document.querySelectorAll('button')].find(b => b.textContent === '{}').click()".format
            )
            page.run(press("Done"))
            seen["too early"] = page.run("window.vision3d.sent")
            page.click(*at(0, 90, 80))
            page.click(*at(1, 10, 10))  # the wrong place
            page.wait_for(READY)
            page.run(press("undo"))
            page.click(*at(1, 90, 80))
            page.wait_for(READY)
            seen["marks"] = page.run("window.vision3d.marks")
            screen = page.pixels().astype(int)
            places = [[round(v) for v in at(0, *p)] for p in ((130, 80), (20, 20))]
            seen["on, off"] = [int(screen[y, x].sum()) for x, y in places]
            page.run(press("Done"))
            page.wait_for("document.getElementById('message').textContent.includes('taken')")
        except BaseException as error:
            seen["error"] = error
            raise

    monkeypatch.setattr("webbrowser.open", lambda url: threading.Thread(target=mark, args=(url,)).start())
    command = [
        "swap", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--out", str(tmp_path / "out"),
        "--weights", str(sd_dino_folder),
    ]  # fmt: skip
    assert main([*command, "--click", "--port", "0"]) == 0
    assert "error" not in seen and seen["too early"] is False and seen["marks"] == [1, 1]
    assert seen["on, off"][0] > 1.5 * seen["on, off"][1]
    folder = tmp_path / "out" / "a__b"
    masks = [folder / f"mask_{side}.png" for side in "ab"]
    for path, inside in zip(masks, insides, strict=True):
        assert overlap(np.asarray(Image.open(path)) > 0, inside) > 0.9
    assert f"--mask-a {masks[0]} --mask-b {masks[1]}" in capsys.readouterr().err

    again = [*command, "--mask-a", str(masks[0]), "--mask-b", str(masks[1])]
    assert main([*again, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 1
    assert main([*again, "--click"]) == 2
    assert "--click" in capsys.readouterr().err
