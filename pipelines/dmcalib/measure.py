"""``vision3d measure``: lengths, heights and planes in one photograph, in metres."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vision3d.errors import InputError
from vision3d.io.files import DAMAGED

if TYPE_CHECKING:
    from vision3d.camera import Intrinsics
    from vision3d.geometry.measure import Metrology


@dataclass
class MeasureReport:
    """What was measured in one photograph.

    Attributes:
        source: the photograph or result folder.
        camera: one line about the camera.
        lengths: name → measurement as plain numbers, with its text.
        planes: name → plane as plain numbers, with its text.
        notes: what to know when reading the numbers.
    """

    source: str
    camera: str
    lengths: dict[str, dict[str, Any]] = field(default_factory=dict)
    planes: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    exit_code: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "source": self.source,
            "camera": self.camera,
            "lengths": self.lengths,
            "planes": self.planes,
            "notes": self.notes,
        }

    def __str__(self) -> str:
        lines = [f"camera: {self.camera}"]
        lines += [
            f"{name}: {entry['text']}"
            for entries in (self.lengths, self.planes)
            for name, entry in entries.items()
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def measure(
    photo: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO")],
    start: Annotated[str | None, tyro.conf.arg(name="from", metavar="X,Y")] = None,
    to: Annotated[str | None, tyro.conf.arg(metavar="X,Y")] = None,
    height: Annotated[str | None, tyro.conf.arg(metavar="X,Y")] = None,
    ground: Annotated[str | None, tyro.conf.arg(metavar="X0,Y0,X1,Y1")] = None,
    plane: Annotated[str | None, tyro.conf.arg(metavar="X0,Y0,X1,Y1")] = None,
    scale_error: float | None = None,
    domain: Literal["indoor", "outdoor", "object", "any"] | None = None,
    focal: float | None = None,
    use_exif: bool = False,
    weights: str | None = None,
    base: str | None = None,
    seed: int = 666,
    device: str = "auto",
) -> MeasureReport:
    """Measure in one photograph: distances between pixels, heights above the floor, planes.

    Calibrates the photograph and predicts its metric depth (DM-Calib), or reads both from a result folder of
    'vision3d calibrate --depth'. Pixels are x,y from the top left corner of the photograph.

    Args:
        photo: photograph, or result folder of 'vision3d calibrate --depth'.
        start: pixel where a distance begins.
        to: pixel where it ends.
        height: pixel whose height above the ground is wanted.
        ground: rectangle of pixels that shows the ground; by default the floor is looked for in the lower part.
        plane: rectangle of pixels through which a plane is fitted.
        scale_error: relative error of the depth's scale that the uncertainties assume; by default what the weights say
            of their depth, at least 0.1.
        domain: of the depth; by default the weights' own.
        focal: known focal length in pixels of the photograph.
        use_exif: take EXIF's focal length as known.
        weights: as for calibrate.
        base: as for calibrate.
        seed: of the noise.
        device: auto, cpu, cuda, cuda:1 or mps.
    """
    if (start is None) != (to is None):
        raise InputError("a distance with one end", "give both --from x,y and --to x,y")
    if start is None and height is None and plane is None:
        raise InputError(
            "nothing to measure", "give --from x,y --to x,y, or --height x,y, or --plane x0,y0,x1,y1"
        )
    ends = None if start is None or to is None else (numbers(start, 2, "--from"), numbers(to, 2, "--to"))
    top = None if height is None else numbers(height, 2, "--height")
    floor = None if ground is None else numbers(ground, 4, "--ground")
    patch = None if plane is None else numbers(plane, 4, "--plane")
    if scale_error is not None and not 0 <= scale_error < 1:
        raise InputError(f"scale_error {scale_error}", "give a share in [0, 1)")

    from vision3d.geometry.measure import Plane, fit_plane

    metrology, camera, notes = _metrology(
        photo,
        scale_error,
        {"domain": domain, "focal": focal, "use_exif": use_exif, "seed": seed},
        weights,
        base,
        device,
    )
    report = MeasureReport(str(photo), camera, notes=notes)

    def add_plane(name: str, found: Plane) -> None:
        report.planes[name] = {**found.to_dict(), "text": str(found)}

    if ends is not None:
        length = metrology.distance(ends[0], ends[1])  # type: ignore[arg-type]
        report.lengths["distance"] = {**length.to_dict(), "text": str(length)}
    if patch is not None:
        add_plane("plane", fit_plane(metrology.region(*patch)))
    if top is not None:
        level = metrology.ground() if floor is None else fit_plane(metrology.region(*floor))
        add_plane("ground", level)
        found = metrology.height(top, level)  # type: ignore[arg-type]
        report.lengths["height"] = {**found.to_dict(), "text": str(found)}
    return report


def numbers(text: str, count: int, option: str) -> tuple[float, ...]:
    """Comma-separated numbers of an option. Raises InputError unless there are ``count``."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count or not all(map(math.isfinite, values)):
        wanted = ",".join(("x", "y") if count == 2 else ("x0", "y0", "x1", "y1"))
        raise InputError(f"{option} {text!r}", f"give {wanted} in pixels, without spaces")
    return values


def _metrology(
    source: Path,
    scale_error: float | None,
    options: dict[str, Any],
    weights: str | None,
    base: str | None,
    device: str,
) -> tuple[Metrology, str, list[str]]:
    """What measures in a photograph, one line about its camera, and notes."""
    import numpy as np

    from vision3d.camera import Intrinsics
    from vision3d.geometry.measure import Metrology, scale_sigma

    if source.is_dir():
        files = source / "camera.json", source / "metric_depth.npy"
        for file in files:
            if not file.is_file():
                raise InputError(
                    f"{source} holds no {file.name}", "give a photograph, or a result of 'calibrate --depth'"
                )
        try:
            entry = json.loads(files[0].read_text(encoding="utf-8"))
            camera = Intrinsics.from_dict(entry)
            covariance = None if entry.get("covariance") is None else np.array(entry["covariance"])
            depth = np.load(files[1], allow_pickle=False)
        except DAMAGED as error:
            raise InputError(
                f"{source}: damaged result ({error})", "calibrate that photograph again"
            ) from error
        stated = float(entry.get("depth_noise", 0))
        metrology = Metrology(depth, camera, covariance, scale_sigma=scale_sigma(scale_error, stated))
        return metrology, _camera_line(camera), []
    from vision3d.io.images import load_photo
    from vision3d.pipelines.dmcalib.pipeline import DMCalib

    picture = load_photo(source)
    pipeline = DMCalib.from_pretrained(weights, base=base, device=device)
    prediction = pipeline(picture, depth=True, **options)
    assert not isinstance(prediction, list) and prediction.depth is not None
    metrology = Metrology(
        prediction.depth.depth,
        prediction.intrinsics,
        prediction.covariance,
        scale_sigma=scale_sigma(scale_error, pipeline.config.depth_noise),
    )
    notes = []
    if "mini" in pipeline.weights_name:
        notes.append(
            "the embedded weights are for trying things out; pull dmcalib for lengths worth trusting"
        )
    return metrology, prediction.summary(), notes


def _camera_line(camera: Intrinsics) -> str:
    return f"{camera}, fx {camera.fx:.0f} px"
