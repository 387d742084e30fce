"""Correspondences between two images, whatever found them: semantic or geometric, sparse or dense."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, get_args

import numpy as np

from vision3d.errors import InputError
from vision3d.prediction import GeometryLimits, Prediction, Writer

if TYPE_CHECKING:
    from PIL import Image

    from vision3d.io.images import Photo

_COLUMNS = ("x_a", "y_a", "x_b", "y_b", "similarity", "confidence", "mutual", "cycle_error")
MATCHES, DESCRIPTORS = "matches.npz", "descriptors.npz"
DRAWN = 60
"""Matches in a picture, at most."""
_SHOWN_SIDE = 1280  # pixels of the photographs beside the matches
Measure = Literal["dot", "l2", "l1"]


@dataclass(eq=False)
class CellDescriptors:
    """What the cells of one image are compared by.

    Attributes:
        values: (h * w, C) float16, row by row.
        shape: (h, w) cells.
        first: x, y of the first cell's middle, in pixels of the image.
        step: x, y from one middle to the next, in pixels of the image.
        allowed: (h * w,) bool: cells that may be matched to.

    Raises:
        InputError: shapes that do not fit together.
    """

    values: np.ndarray
    shape: tuple[int, int]
    first: tuple[float, float]
    step: tuple[float, float]
    allowed: np.ndarray

    def __post_init__(self) -> None:
        count = self.shape[0] * self.shape[1]
        if self.values.ndim != 2 or len(self.values) != count or self.allowed.shape != (count,):
            raise InputError(
                f"descriptors of shape {self.values.shape} for {self.shape[0]}×{self.shape[1]} cells",
                "give one for each cell",
            )


@dataclass(eq=False)
class PairDescriptors:
    """Descriptors of both images of a pair, from which the match of any point and its similarities follow.

    The similarity of two cells is ``scale²`` times the product of their values for the measure ``dot``, or minus
    ``scale`` times their distance for ``l2`` and ``l1``; larger is nearer.

    Attributes:
        a, b: of the two images.
        measure: see above.
        scale: what values are multiplied by; their greatest magnitude is 1.
        metric: the method's name for what is measured.
        temperature: of the softmax over similarities on the scale of a cosine, behind confidences and places between
            cells.
        reach: cells around the best one that share in a place between cells; 0 takes its middle.
        lengths: mean squared length of the descriptors of either image, which puts distances ``l2`` on the scale of a
            cosine.
    """

    a: CellDescriptors
    b: CellDescriptors
    measure: Measure
    scale: float
    metric: str
    temperature: float
    reach: int
    lengths: tuple[float, float] = (2.0, 2.0)

    def save(self, path: Path) -> None:
        """Write an ``.npz``."""
        arrays: dict[str, Any] = {
            n: getattr(self, n) for n in ("measure", "scale", "metric", "temperature", "reach", "lengths")
        }
        for side, cells in (("a", self.a), ("b", self.b)):
            names = ("values", "shape", "first", "step", "allowed")
            arrays |= {f"{name}_{side}": getattr(cells, name) for name in names}
        with path.open("wb") as file:
            np.savez(file, **arrays)  # deflating numbers of this kind takes long and gains little

    @classmethod
    def load(cls, path: Path) -> PairDescriptors:
        """Read what :meth:`save` wrote. Raises InputError if it is damaged."""
        arrays = _read_arrays(path)
        try:
            sides = []
            for side in ("a", "b"):
                shape, first, step = (arrays[f"{n}_{side}"].tolist() for n in ("shape", "first", "step"))
                values, allowed = arrays[f"values_{side}"], arrays[f"allowed_{side}"].astype(bool)
                height, width = shape
                place, distance = (first[0], first[1]), (step[0], step[1])
                sides.append(CellDescriptors(values, (height, width), place, distance, allowed))
            measure = str(arrays["measure"])
            if measure not in get_args(Measure) or sides[0].values.shape[1] != sides[1].values.shape[1]:
                raise ValueError(measure)
            return cls(
                sides[0],
                sides[1],
                measure=cast(Measure, measure),
                scale=float(arrays["scale"]),
                metric=str(arrays["metric"]),
                temperature=float(arrays["temperature"]),
                reach=int(arrays["reach"]),
                lengths=(float(arrays["lengths"][0]), float(arrays["lengths"][1])),
            )
        except (KeyError, ValueError, TypeError, IndexError, InputError) as error:
            raise _damaged(path) from error


@dataclass(eq=False, repr=False)
class Matches(Prediction):
    """Corresponding points of images A and B, and perhaps flow from each pixel of one to the other.

    Points are x, y in pixels of their own image, pixel centres at +0.5. Their order is that of the points asked for,
    or of falling confidence where the method chose them.

    Attributes:
        points_a, points_b: (N, 2) float32.
        similarity: (N,) float32, as the method measures it; larger is nearer.
        confidence: (N,) float32 from 0 to 1; orders matches, is no probability.
        mutual: (N,) bool: the match in B leads back to where it came from.
        cycle_error: (N,) float32, pixels of A between a point and where its match leads back to; NaN where the method
            does not look back.
        size_a, size_b: (height, width) of the images.
        flow_ab: (H_a, W_a, 2) float32: pixel centre plus flow is the place in B; or None.
        flow_ba: (H_b, W_b, 2) the same from B to A, or None.
        photo_b: the second image (the first is ``photo``), or None.
        mirrored: the network saw A's mirror image, which fits B better; points are those of A all the same.
        descriptors: of the cells of both images, for looking at similarities later, or None.

    Raises:
        InputError: shapes that do not fit together.
    """

    kind: ClassVar[str] = "matches"
    formats: ClassVar[tuple[str, ...]] = ()

    points_a: np.ndarray
    points_b: np.ndarray
    similarity: np.ndarray
    confidence: np.ndarray
    mutual: np.ndarray
    cycle_error: np.ndarray
    size_a: tuple[int, int]
    size_b: tuple[int, int]
    flow_ab: np.ndarray | None = None
    flow_ba: np.ndarray | None = None
    photo_b: Photo | None = None
    mirrored: bool = False
    descriptors: PairDescriptors | None = None

    def __post_init__(self) -> None:
        self.points_a = np.ascontiguousarray(self.points_a, np.float32).reshape(-1, 2)
        self.points_b = np.ascontiguousarray(self.points_b, np.float32).reshape(-1, 2)
        count = len(self.points_a)
        for name, dtype in (
            ("similarity", np.float32),
            ("confidence", np.float32),
            ("mutual", np.bool_),
            ("cycle_error", np.float32),
        ):
            setattr(self, name, np.ascontiguousarray(getattr(self, name), dtype))
            if getattr(self, name).shape != (count,):
                raise InputError(
                    f"{name} of shape {getattr(self, name).shape} for {count} points", "give one each"
                )
        if len(self.points_b) != count:
            raise InputError(f"{count} points in A and {len(self.points_b)} in B", "give as many in both")
        for name, size in (("flow_ab", self.size_a), ("flow_ba", self.size_b)):
            flow = getattr(self, name)
            if flow is not None:
                flow = np.ascontiguousarray(flow, np.float32)
                setattr(self, name, flow)
                if flow.shape != (*size, 2):
                    raise InputError(f"{name} of shape {flow.shape} for an image of {size}", "resize it")

    def __len__(self) -> int:
        return len(self.points_a)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of A."""
        return self.size_a

    @property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """The points in A and in B."""
        return self.points_a, self.points_b

    @property
    def fingerprint(self) -> str:
        """As :attr:`Prediction.fingerprint`, of both images."""
        return pair_fingerprint(self.provenance.fingerprint(self.photo), self.photo_b)

    def select(self, keep: np.ndarray) -> Matches:
        """The matches that a mask (N,) or an index array picks; flow is kept."""
        from dataclasses import replace

        names = ("points_a", "points_b", "similarity", "confidence", "mutual", "cycle_error")
        return replace(self, **{name: getattr(self, name)[keep] for name in names})

    def confident(self, threshold: float = 0.5, *, mutual: bool = True) -> Matches:
        """Matches with at least this confidence, and by default only mutual ones."""
        return self.select((self.confidence >= threshold) & (self.mutual | (not mutual)))

    def writers(self, formats: tuple[str, ...], limits: GeometryLimits) -> dict[str, tuple[str, Writer]]:
        """See :class:`Prediction`."""
        files: dict[str, tuple[str, Writer]] = {
            MATCHES: ("all arrays of this result", self._write_npz),
            "matches.csv": ("points in pixels, centres at +0.5, and scores", self._write_csv),
            "preview.png": ("both images and matches in colours", lambda path: self.preview().save(path)),
        }
        for name, flow in (("flow_ab", self.flow_ab), ("flow_ba", self.flow_ba)):
            if flow is not None:
                files[f"{name}.flo"] = ("flow in pixels, Middlebury format", partial(_write_flo, flow))
                files[f"{name}.png"] = (
                    "the flow in Middlebury's colours",
                    partial(_write_flow_picture, flow),
                )
        for name, photo in (("photo_a.jpg", self.photo), ("photo_b.jpg", self.photo_b)):
            if photo is not None:
                files[name] = ("the photograph, made smaller, for the viewer", partial(_write_photo, photo))
        if self.descriptors is not None:
            files[DESCRIPTORS] = ("descriptors of both images, for the viewer", self.descriptors.save)
        return files

    @classmethod
    def load(cls, folder: str | Path) -> Matches:
        """Read back what :meth:`save` wrote into a folder; without photographs and provenance.

        Raises:
            InputError: no matches there, or damaged ones.
        """
        folder = Path(folder)
        path, beside = folder / MATCHES, folder / DESCRIPTORS
        if not path.is_file():
            raise InputError(f"{folder} holds no matches", "give an output folder of `vision3d match`")
        arrays = _read_arrays(path)
        try:
            for name in ("size_a", "size_b"):
                height, width = arrays[name].tolist()
                arrays[name] = (height, width)  # type: ignore[assignment]
            arrays["mirrored"] = bool(arrays.get("mirrored", False))  # type: ignore[assignment]
            found = cls(**arrays)  # type: ignore[arg-type]
            for points in found.points:
                if not np.isfinite(points).all():
                    raise ValueError("points that are no numbers")
        except (KeyError, ValueError, TypeError, InputError) as error:
            raise _damaged(path) from error
        if beside.is_file():
            found.descriptors = PairDescriptors.load(beside)
        return found

    def describe(self) -> dict[str, Any]:
        """See :class:`Prediction`."""
        second = self.photo_b
        return {
            "matches": len(self),
            "mutual": int(self.mutual.sum()),
            "dense": self.flow_ab is not None,
            "mirrored": self.mirrored,
            "second_input": None
            if second is None
            else {
                "name": second.path.name if second.path else second.name,
                "width": self.size_b[1],
                "height": self.size_b[0],
                "pixels_sha256": second.sha256,
            },
            "conventions": {
                "points": "x right, y down, in pixels of their own image, pixel centres at +0.5",
                "flow": "x, y in pixels; pixel centre plus flow is the place in the other image",
                "confidence": "0 to 1, orders matches; not a calibrated probability",
                "cycle_error": "pixels of the first image; NaN where the method does not look back",
            },
        }

    def preview(self) -> Image.Image:
        """Both images beside each other, matches joined by lines of the hue of their place in A."""
        return draw_matches(self)

    def _write_npz(self, path: Path) -> None:
        arrays: dict[str, Any] = {
            "points_a": self.points_a,
            "points_b": self.points_b,
            "similarity": self.similarity,
            "confidence": self.confidence,
            "mutual": self.mutual,
            "cycle_error": self.cycle_error,
            "size_a": np.array(self.size_a),
            "size_b": np.array(self.size_b),
            "mirrored": np.array(self.mirrored),
        }
        arrays |= {n: f for n, f in (("flow_ab", self.flow_ab), ("flow_ba", self.flow_ba)) if f is not None}
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)

    def _write_csv(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for i in range(len(self)):
                places = [f"{v:.3f}" for v in (*self.points_a[i], *self.points_b[i])]
                scores = [f"{self.similarity[i]:.6g}", f"{self.confidence[i]:.4f}", int(self.mutual[i])]
                writer.writerow([*places, *scores, f"{self.cycle_error[i]:.3f}"])

    def __repr__(self) -> str:
        dense = ", dense flow" if self.flow_ab is not None else ""
        return (
            f"Matches: {len(self)} points ({int(self.mutual.sum())} mutual{dense}) between "
            f"{self.size_a[1]}×{self.size_a[0]} and {self.size_b[1]}×{self.size_b[0]}; "
            f"by {self.provenance.method} ({self.provenance.weights})"
        )


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz``. Raises InputError if it is damaged."""
    from vision3d.io.files import DAMAGED

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except DAMAGED as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged", "compute the result again with --overwrite")


def pair_fingerprint(first: str, second: Photo | None) -> str:
    """Checksum of the work on a pair, from that on its first image and the second image."""
    import hashlib

    return hashlib.sha256(f"{first}|{second.sha256 if second is not None else None}".encode()).hexdigest()


def read_points(path: str | Path) -> np.ndarray:
    """Points (N, 2) of a CSV file: columns ``x`` and ``y`` (or ``x_a`` and ``y_a``), or the first two.

    Raises:
        InputError: no such file, or no numbers in it.
    """
    path = Path(path)
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as points ({error})", "give a CSV file with x and y"
        ) from error
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    columns = (0, 1)
    if rows:
        names = [cell.strip().lower() for cell in rows[0]]
        for pair in (("x", "y"), ("x_a", "y_a")):
            if set(pair) <= set(names):
                columns, rows = (names.index(pair[0]), names.index(pair[1])), rows[1:]
                break
    try:
        points = np.array([[float(row[c]) for c in columns] for row in rows], np.float64)
    except (ValueError, IndexError) as error:
        raise InputError(
            f"{path}: not a table of points ({error})", "give columns x and y in pixels"
        ) from error
    if not len(points) or not np.isfinite(points).all():
        raise InputError(f"{path} holds no points", "give rows of x and y in pixels")
    return points


def _write_flo(flow: np.ndarray, path: Path) -> None:
    from vision3d.io.flow import write_flo

    write_flo(path, flow)


def _write_flow_picture(flow: np.ndarray, path: Path) -> None:
    from PIL import Image

    from vision3d.colour import colour_flow

    Image.fromarray(colour_flow(flow)).save(path)


def _write_photo(photo: Photo, path: Path) -> None:
    from vision3d.io.mesh import encode_texture

    path.write_bytes(encode_texture(photo.on_white, max_side=_SHOWN_SIDE, quality=90))


def match_colours(matches: Matches) -> np.ndarray:
    """(N, 3) uint8, the hue of a match from its direction from the middle of A."""
    import colorsys

    height, width = matches.size_a
    x, y = (matches.points_a / [width, height] - 0.5).T
    hues = (np.arctan2(y, x) / (2 * np.pi)) % 1
    colours = [colorsys.hsv_to_rgb(float(hue), 0.85, 1.0) for hue in hues]
    return np.round(255 * np.array(colours).reshape(-1, 3)).astype(np.uint8)


def draw_matches(matches: Matches, *, limit: int = DRAWN, max_side: int = 800) -> Image.Image:
    """Both images at one height with up to ``limit`` matches, the most confident, spread over the image."""
    from PIL import Image, ImageDraw

    height = min(max_side, max(matches.size_a[0], matches.size_b[0], 256))
    pictures, scales = [], []
    for photo, size in ((matches.photo, matches.size_a), (matches.photo_b, matches.size_b)):
        scale = min(height / size[0], max_side / size[1])
        shape = max(1, round(size[1] * scale)), max(1, round(size[0] * scale))
        picture = (
            Image.new("RGB", shape, (96, 96, 96))
            if photo is None
            else Image.fromarray(photo.on_white).resize(shape)
        )
        pictures.append(picture)
        scales.append(scale)
    gap = 8
    width = pictures[0].width + gap + pictures[1].width
    sheet = Image.new("RGB", (width, max(p.height for p in pictures)), "white")
    left = pictures[0].width + gap
    sheet.paste(pictures[0], (0, 0))
    sheet.paste(pictures[1], (left, 0))
    draw = ImageDraw.Draw(sheet)
    colours = match_colours(matches)
    for i in spread(matches, limit):
        a, b = matches.points_a[i], matches.points_b[i]
        red, green, blue = colours[i].tolist()
        colour = red, green, blue
        start = float(a[0] * scales[0]), float(a[1] * scales[0])
        end = left + float(b[0] * scales[1]), float(b[1] * scales[1])
        draw.line([start, end], fill=colour, width=1)
        for px, py in (start, end):
            draw.ellipse([px - 3, py - 3, px + 3, py + 3], outline=(0, 0, 0), fill=colour)
    return sheet


def spread(matches: Matches, limit: int) -> list[int]:
    """Indices of up to ``limit`` matches to draw: from the most confident down, not two of them close together in A."""
    order = np.argsort(-matches.confidence, kind="stable")
    if len(order) <= limit:
        return [int(i) for i in order]
    clearance = 0.6 * np.sqrt(matches.size_a[0] * matches.size_a[1] / limit)
    chosen: list[int] = []
    for i in order:
        place = matches.points_a[i]
        if all(np.hypot(*(place - matches.points_a[j])) >= clearance for j in chosen):
            chosen.append(int(i))
            if len(chosen) == limit:
                break
    return chosen
