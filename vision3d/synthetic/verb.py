"""The verb ``vision3d synthesize``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SynthesizeReport:
    """What is there after a run.

    Attributes:
        folder: that holds it.
        images: how many.
        rendered: how many of them just now.
        overview: picture of the first ones, where there is one.
    """

    folder: Path
    images: int
    rendered: int
    overview: Path | None = None

    @property
    def exit_code(self) -> int:
        """Of the process."""
        return 0

    def __str__(self) -> str:
        before = f" ({self.images - self.rendered} were there)" if self.rendered < self.images else ""
        overview = f", overview in {self.overview}" if self.overview else ""
        return f"{self.images} images in {self.folder}{before}{overview}"

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "folder": str(self.folder),
            "images": self.images,
            "rendered": self.rendered,
            "overview": None if self.overview is None else str(self.overview),
        }


def synthesize(
    out: Path,
    count: int = 16,
    size: tuple[int, int] = (256, 256),
    seed: int = 0,
    workers: int = 1,
    shards: bool = False,
    overwrite: bool = False,
    handheld: bool = False,
) -> SynthesizeReport:
    """Render images of the procedural world with exact depth, normals, intrinsics and labels.

    Writes one folder per seed with image.png, depth.npy (float32 z-depth in metres, inf for sky), normals.npy
    (float32, OpenCV camera frame, towards the camera), semantic.png (ADE20K-150 index, 255 for none),
    ids.npz (object and part ids) and sample.json (intrinsics, pose, parts, keypoints, caption), and a contact
    sheet sheet.png. The same seed and size give the same files. What is complete is not rendered again.

    With --shards, writes what "vision3d train --data" reads instead: the same in files of 120 images, which training
    maps into memory.

    Args:
        out: folder to write to.
        count: how many images.
        size: height and width in pixels.
        seed: seed of the first image; the others follow.
        workers: processes that render.
        shards: write shards for training.
        overwrite: render again what is there.
        handheld: furnished rooms alone, as a hand-held camera sees them from near: tilted down and askew.
    """
    from vision3d.errors import InputError

    if count < 1:
        raise InputError(f"count is {count}", "ask for at least one image")
    if shards:
        if overwrite:
            raise InputError("--overwrite with --shards", "delete the folder, or give another one")
        return _fill_shards(out, range(seed, seed + count), size, workers, handheld)
    import cv2
    import numpy as np

    from vision3d.io.files import atomic_path, check_writable, remove_stagings
    from vision3d.progress import progress
    from vision3d.synthetic.stream import WorldStream

    check_writable(out)
    remove_stagings(out)
    folders = {number: out / f"{number:06d}" for number in range(seed, seed + count)}
    missing = [
        number for number, f in folders.items() if overwrite or not _is_finished(f, number, size, handheld)
    ]
    written = 0
    try:
        with WorldStream(missing, size, workers if missing else 0, handheld=handheld) as stream:
            for sample in progress(stream, total=len(missing), description="synthesize"):
                _save(sample, folders[sample.seed], handheld)
                written += 1
    except KeyboardInterrupt:
        there = count - len(missing) + written
        raise KeyboardInterrupt(
            f"interrupted with {there} of {count} images in {out}; the same command goes on from there"
        ) from None
    tiles = [_tile(folder) for folder in list(folders.values())[:64]]
    columns = max(1, round(len(tiles) ** 0.5))
    while len(tiles) % columns:
        tiles.append(np.zeros_like(tiles[0]))
    sheet = np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])
    with atomic_path(out / "sheet.png") as path:
        path.write_bytes(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
    return SynthesizeReport(out, count, written, out / "sheet.png")


def _fill_shards(
    out: Path, seeds: range, size: tuple[int, int], workers: int, handheld: bool
) -> SynthesizeReport:
    from vision3d.io.files import check_writable
    from vision3d.synthetic.cache import ShardCache

    check_writable(out)
    cache = ShardCache(out)
    try:
        written = cache.fill(seeds, size, workers, handheld)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; the same command goes on from the shards in {out}") from None
    return SynthesizeReport(out, len(seeds), written)


FILES = ("image.png", "semantic.png", "depth.npy", "normals.npy", "ids.npz", "sample.json")


def _is_finished(folder: Path, seed: int, size: tuple[int, int], handheld: bool) -> bool:
    """Whether a sample of this seed, size, kind of view and version of the world is there with all its files."""
    import json

    from vision3d import __version__

    try:
        document = json.loads((folder / "sample.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(document, dict) or not all((folder / name).is_file() for name in FILES):
        return False
    wanted = {"seed": seed, "size": list(size), "version": __version__, "handheld": handheld}
    return all({"handheld": False, **document}.get(name) == value for name, value in wanted.items())


def _save(sample, folder: Path, handheld: bool) -> None:  # type: ignore[no-untyped-def]
    """Writes one sample, all of it or nothing; sample.json marks completeness."""
    import json

    import cv2
    import numpy as np

    from vision3d import __version__
    from vision3d.io.files import staged_folder, write_npy
    from vision3d.synthetic.ade20k import CLASSES

    document = {
        "seed": sample.seed,
        "size": list(sample.image.shape[:2]),
        "version": __version__,
        "handheld": handheld,
        "caption": sample.caption,
        "kind": sample.kind,
        "conventions": "OpenCV camera (x right, y down, z forward), pixel centres +0.5, metres, world z up",
        "K": sample.K.tolist(),
        "cam_to_world": sample.cam_to_world.tolist(),
        "classes": {int(i): CLASSES[i] for i in np.unique(sample.semantic) if i < len(CLASSES)},
        "parts": [
            {"part_id": p.part_id, "object_id": p.object_id, "name": p.name, "category": p.category}
            for p in sample.parts
        ],
        "keypoints": [
            {
                "name": str(k["name"]),
                "object_id": int(k["object_id"]),
                "category": str(k["category"]),
                "x": float(k["x"]),
                "y": float(k["y"]),
                "z_cam": float(k["z_cam"]),
                "visible": bool(k["visible"]),
            }
            for k in sample.keypoints
        ],
    }
    with staged_folder(folder, last="sample.json") as staging:
        for name, array in (("image", sample.image[..., ::-1]), ("semantic", sample.semantic)):
            (staging / f"{name}.png").write_bytes(cv2.imencode(".png", array)[1].tobytes())
        write_npy(staging / "depth.npy", sample.depth)
        write_npy(staging / "normals.npy", sample.normals)
        with (staging / "ids.npz").open("wb") as file:
            np.savez_compressed(file, object_id=sample.object_id, part_id=sample.part_id)
        (staging / "sample.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


def _tile(folder: Path):  # type: ignore[no-untyped-def]
    """Image, depth and normals of a sample below each other, (3H, W, 3) uint8 RGB."""
    import cv2
    import numpy as np

    from vision3d.errors import InputError

    picture = cv2.imread(str(folder / "image.png"))
    if picture is None:
        raise InputError(f"{folder / 'image.png'} cannot be read", "give --overwrite to render it again")
    image = picture[..., ::-1]
    depth, normal_map = np.load(folder / "depth.npy"), np.load(folder / "normals.npy")
    finite = np.isfinite(depth)
    near = np.log(np.clip(depth, 0.2, 200) / 0.2) / np.log(1000)
    colour = cv2.applyColorMap(((1 - near) * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    normals = ((normal_map * (1, -1, -1) + 1) * 127.5).astype(np.uint8)
    return np.vstack([image, colour * finite[..., None], normals * finite[..., None]])
