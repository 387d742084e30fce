"""Objects in photographs, marked by hand in the browser: clicks, strokes and outlines become masks.

The page (``page/masks.js``) keeps the marks and asks for the mask that they mean after each one, so that undoing is
forgetting the last one, and what was seen last is what is taken.
"""

from __future__ import annotations

import io
import threading
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vision3d.errors import InputError
from vision3d.marks import Mark, mask_of_marks
from vision3d.progress import say, warn
from vision3d.viewer.pages import Blobs, fill_page
from vision3d.viewer.server import LOOPBACK, PORT, Answer, PageServer, is_loopback

if TYPE_CHECKING:
    from vision3d.io.photo import Photo

_SHOWN_SIDE = 1280  # pixels of the photographs in the page
_OUTSIDE = (10, 14, 20, 165)  # laid over what is not the object
_EDGE = (92, 200, 255, 255)


def ask_masks(
    photos: Sequence[Photo], *, host: str = LOOPBACK, port: int = PORT, open_browser: bool = True
) -> list[np.ndarray]:
    """Wait until somebody has marked the object of each photograph in the browser.

    Args:
        photos: one or several.
        host: address to listen on; only this machine can connect to the default.
        port: to listen on, or the next free one; 0 is any free one.
        open_browser: open a tab.

    Returns:
        (H, W) bool for each.

    Raises:
        InputError: a host or port that cannot be used.
        KeyboardInterrupt: Ctrl-C.
    """
    with MaskPage(photos, host=host, port=port) as page:
        if not is_loopback(host):
            warn(f"everyone who can reach port {page.port} of this machine can see and mark the photographs")
        say(f"{page.url} waits for the objects to be marked; Ctrl-C ends")
        if open_browser:
            webbrowser.open(page.url)
        return page.wait()


class MaskPage:
    """A running page on which objects are marked.

    Args:
        photos: one or several.
        host, port: see :func:`ask_masks`.

    Attributes:
        url: where it is.
    """

    def __init__(self, photos: Sequence[Photo], *, host: str = LOOPBACK, port: int = PORT) -> None:
        self.photos = list(photos)
        self._lock = threading.Lock()  # one picture is cut at a time: that takes all of the processor
        self._known: dict[int, tuple[Any, np.ndarray]] = {}
        self._done = threading.Event()
        self._masks: list[np.ndarray] = []
        self._server = PageServer(self._get, self._post, host=host, port=port)
        self.port, self.url = self._server.port, self._server.url

    def wait(self) -> list[np.ndarray]:
        """The masks (H, W) bool, when the page has sent them."""
        while not self._done.wait(0.5):
            pass
        return self._masks

    def __enter__(self) -> MaskPage:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    def _get(self, path: str) -> Answer | None:
        if path != "/":
            return None
        blobs = Blobs(max_texture=_SHOWN_SIDE)
        title = "Mark the object" if len(self.photos) == 1 else "Mark the two objects"
        scene = {
            "title": title,
            "note": "click or paint on it, or draw around it",
            "background": "night",
            "photos": [
                {"name": photo.name, "size": photo.size, "picture": blobs.picture(photo.rgb8, _SHOWN_SIDE)}
                for photo in self.photos
            ],
        }
        return "text/html", fill_page(["pictures", "masks"], title, scene, blobs, may_ask=True).encode()

    def _post(self, path: str, sent: Any) -> Answer | None:
        if path == "/mask":
            number = sent.get("photo") if isinstance(sent, dict) else None
            if not isinstance(number, int) or not 0 <= number < len(self.photos):
                raise InputError(f"photograph {number!r}", f"there are {len(self.photos)}")
            return "image/png", _veil(self._mask(number, sent.get("marks")))
        if path == "/done":
            every = sent.get("marks") if isinstance(sent, dict) else None
            if not isinstance(every, list) or len(every) != len(self.photos):
                raise InputError("masks that are not one for each photograph", "load the page again")
            masks = [self._mask(number, marks) for number, marks in enumerate(every)]
            for photo, mask in zip(self.photos, masks, strict=True):
                if not mask.any():
                    raise InputError(f"no object is marked in {photo.name}", "click on it")
            self._masks = masks
            self._done.set()
            return "text/plain", b"taken"
        return None

    def _mask(self, number: int, sent: Any) -> np.ndarray:
        with self._lock:
            known = self._known.get(number)
            if known is None or known[0] != sent:
                known = self._known[number] = sent, mask_of_marks(self.photos[number].rgb8, read_marks(sent))
            return known[1]


def read_marks(sent: Any) -> list[Mark]:
    """Marks as the page sends them: a list of ``{"kind", "points", "width"}``. Raises InputError for anything else."""
    try:
        return [Mark(m["kind"], np.asarray(m["points"], np.float64), float(m["width"])) for m in sent]
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"marks that cannot be read ({error})", "load the page again") from error


def _veil(mask: np.ndarray) -> bytes:
    """A PNG to lay over the photograph: what is not the object is dark, its border is drawn."""
    import cv2
    from PIL import Image

    scale = min(1.0, _SHOWN_SIDE / max(mask.shape))
    size = max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale))
    small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_AREA)
    picture = np.zeros((*small.shape, 4), np.uint8)
    picture[small == 0] = _OUTSIDE
    if small.any():
        borders, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, borders, -1, _EDGE, max(1, round(max(size) / 500)))
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
