"""The verb ``vision3d synthesize``."""

from __future__ import annotations

from pathlib import Path


def synthesize(
    out: Path, count: int = 16, size: tuple[int, int] = (256, 256), seed: int = 0, workers: int = 1
) -> int:
    """Render images of the procedural world with exact depth, normals, intrinsics and labels.

    Writes one folder per seed with image.png, depth.npy (float32 z-depth in metres, inf for sky), normals.npy
    (float32, OpenCV camera frame, towards the camera), semantic.png (ADE20K-150 index, 255 for none),
    ids.npz (object and part ids) and sample.json (intrinsics, pose, parts, keypoints, caption), and a contact
    sheet sheet.png. The same seed and size give the same files.

    Args:
        out: folder to write to.
        count: how many images.
        size: height and width in pixels.
        seed: seed of the first image; the others follow.
        workers: processes that render.
    """
    import cv2
    import numpy as np

    from vision3d.errors import InputError
    from vision3d.io.files import atomic_path
    from vision3d.progress import progress, say
    from vision3d.synthetic.stream import WorldStream

    if count < 1:
        raise InputError(f"count is {count}", "ask for at least one image")
    tiles: list[np.ndarray] = []
    with WorldStream(range(seed, seed + count), size, workers) as stream:
        for sample in progress(stream, total=count, description="synthesize"):
            folder = out / f"{sample.seed:06d}"
            _save(sample, folder)
            if len(tiles) < 64:
                tiles.append(_tile(sample))
    columns = max(1, round(len(tiles) ** 0.5))
    while len(tiles) % columns:
        tiles.append(np.zeros_like(tiles[0]))
    sheet = np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])
    with atomic_path(out / "sheet.png") as path:
        path.write_bytes(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
    say(f"{count} images in {out}, overview in {out / 'sheet.png'}")
    return 0


def _save(sample, folder: Path) -> None:  # type: ignore[no-untyped-def]
    """Writes one sample; sample.json last, so that its presence marks completeness."""
    import json

    import cv2
    import numpy as np

    from vision3d.io.files import atomic_path
    from vision3d.synthetic.ade20k import CLASSES

    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("image", sample.image[..., ::-1]), ("semantic", sample.semantic)):
        with atomic_path(folder / f"{name}.png") as path:
            path.write_bytes(cv2.imencode(".png", array)[1].tobytes())
    for name, array in (("depth", sample.depth), ("normals", sample.normals)):
        with atomic_path(folder / f"{name}.npy") as path, path.open("wb") as file:
            np.save(file, array)
    with atomic_path(folder / "ids.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, object_id=sample.object_id, part_id=sample.part_id)
    document = {
        "seed": sample.seed,
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
    with atomic_path(folder / "sample.json") as path:
        path.write_text(json.dumps(document, indent=1))


def _tile(sample):  # type: ignore[no-untyped-def]
    """Image, depth and normals below each other, (3H, W, 3) uint8 RGB."""
    import cv2
    import numpy as np

    finite = np.isfinite(sample.depth)
    near = np.log(np.clip(sample.depth, 0.2, 200) / 0.2) / np.log(1000)
    colour = cv2.applyColorMap(((1 - near) * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    normals = ((sample.normals * (1, -1, -1) + 1) * 127.5).astype(np.uint8)
    return np.vstack([sample.image, colour * finite[..., None], normals * finite[..., None]])
