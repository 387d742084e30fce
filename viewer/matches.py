"""Matches: both photographs beside each other, their matches, and where any clicked point goes.

Where a point goes is computed in the page (``page/matches.js``), from the descriptors that the result holds or,
without these, its flow or its nearest match. The live viewer serves the page that is exported, a pair at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vision3d.colour import palette
from vision3d.errors import InputError
from vision3d.matches import DRAWN, MATCHES, CellDescriptors, Matches, match_colours, spread
from vision3d.viewer.pages import MAX_TEXTURE, Background, Blobs, fill_page, title_of
from vision3d.viewer.registry import ResultFolder, shows
from vision3d.viewer.scene import Item, Layer
from vision3d.viewer.server import LOOPBACK, PORT, Answer, PageServer

_FLOW_SIDE = 256  # places along a side at which a page knows the flow
_HEAT = "inferno"


@dataclass(eq=False, kw_only=True)
class PairLayer(Layer):
    """Two photographs and what corresponds in them.

    Attributes:
        matches: of both.
        photos: (h, w, 3) uint8 of each, perhaps smaller than the matches say, or None.
    """

    matches: Matches
    photos: tuple[np.ndarray | None, np.ndarray | None]


@shows("matches", page="pairs")
def pair_layers(result: ResultFolder) -> list[Layer]:
    """The pair as its one layer."""
    if result.file(MATCHES) is None:
        raise InputError(f"{result.path} holds no matches", "compute the result again with --overwrite")
    photos = result.image("photo_a.jpg"), result.image("photo_b.jpg")
    return [PairLayer(name="pair", matches=Matches.load(result.path), photos=photos)]


class PairViewer(PageServer):
    """A running viewer of pairs of photographs.

    Args:
        items: pairs; each is read when it is looked at, the first one at once.
        title: of the page.
        background: at the start.
        host: address to listen on; only this machine can connect to the default.
        port: to listen on, or the next free one; 0 is any free one.

    Attributes:
        url: where to look.

    Raises:
        InputError: a first item that cannot be read, a host or port that cannot be used.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        title: str | None = None,
        background: Background = "night",
        host: str = LOOPBACK,
        port: int = PORT,
    ) -> None:
        self.items = items
        self._title, self._background = title or title_of(items), background
        _ = items[0].layers
        super().__init__(self._page, host=host, port=port)

    def _page(self, path: str) -> Answer | None:
        with contextlib.suppress(ValueError):
            number = int(path.strip("/") or 0)
            if 0 <= number < len(self.items):
                text = pairs_page(self.items, title=self._title, background=self._background, shown=number)
                return "text/html", text.encode("utf-8", "replace")
        return None


def pairs_page(
    items: Sequence[Item],
    *,
    title: str,
    background: Background = "night",
    max_side: int = MAX_TEXTURE,
    shown: int | None = None,
) -> str:
    """One page of pairs as text.

    Args:
        items: the pairs.
        title: of the page.
        background: at the start.
        max_side: longest side of photographs, in pixels.
        shown: the page holds this pair only, and the addresses of the others ("/1", "/2", …); by default it holds all.

    Raises:
        InputError: a pair that cannot be read.
    """
    blobs = Blobs(max_texture=max_side)
    scene = {
        "title": title,
        "note": items[0].note if len(items) == 1 else f"{len(items)} pairs",
        "background": background,
        "shown": shown or 0,
        "drawn": DRAWN,
        "heat": blobs.array(palette(_HEAT)),
        "pairs": [
            {"name": item.name, "note": item.note}
            | (_pair(item, blobs) if shown in (None, number) else {"address": f"/{number}"})
            for number, item in enumerate(items)
        ],
    }
    return fill_page(["pictures", "matches"], title, scene, blobs)


def _pair(item: Item, blobs: Blobs) -> dict[str, Any]:
    (layer,) = item.layers
    assert isinstance(layer, PairLayer)
    matches = layer.matches
    first = np.array(spread(matches, DRAWN), np.int64)
    rest = np.setdiff1d(np.arange(len(matches)), first)
    order = np.concatenate([first, rest[np.argsort(-matches.confidence[rest], kind="stable")]])
    found = matches.select(order)
    values = np.column_stack(
        [found.points_a, found.points_b, found.similarity, found.confidence, found.cycle_error]
    )
    kept, flows = matches.descriptors, (matches.flow_ab, matches.flow_ba)
    return {
        "sizes": [matches.size_a, matches.size_b],
        "photos": [
            None if photo is None else blobs.picture(photo, blobs.max_texture) for photo in layer.photos
        ],
        "matches": blobs.array(values.astype(np.float32)),
        "colours": blobs.array(match_colours(found)),
        "descriptors": None
        if kept is None
        else {
            "sides": [_cells(kept.a, blobs), _cells(kept.b, blobs)],
            **{
                n: getattr(kept, n) for n in ("measure", "scale", "metric", "temperature", "reach", "lengths")
            },
        },
        "flows": None
        if kept is not None or all(flow is None for flow in flows)
        else [None if flow is None else blobs.array(_thinned_flow(flow)) for flow in flows],
    }


def _cells(cells: CellDescriptors, blobs: Blobs) -> dict[str, Any]:
    return {
        "values": blobs.array(cells.values),
        "shape": cells.shape,
        "first": cells.first,
        "step": cells.step,
        "allowed": blobs.array(cells.allowed.astype(np.uint8)),
    }


def _thinned_flow(flow: np.ndarray) -> np.ndarray:
    """Flow (h, w, 2) at fewer places, still in pixels of the photograph."""
    import cv2

    height, width = flow.shape[:2]
    share = min(1.0, _FLOW_SIDE / max(height, width))
    size = max(1, round(width * share)), max(1, round(height * share))
    return cv2.resize(flow, size, interpolation=cv2.INTER_LINEAR)
