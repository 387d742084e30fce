"""Masks of objects: from a picture, from transparency, from a point, or found by an optional package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from vision3d.errors import InputError, ResourceError
from vision3d.io.photo import Photo
from vision3d.progress import no_library_bars

REMBG_MODEL = "isnet-general-use"
"""IS-Net (Qin et al., 2022; Apache 2.0); rembg's own choice may not be used commercially."""


def read_mask(path: str | Path) -> np.ndarray:
    """(H, W) bool of a picture, white (or opaque, where it has transparency) inside.

    Raises:
        InputError: no such picture, or an empty mask.
    """
    from vision3d.io.photo import load_photo

    photo = load_photo(path, min_side=1)
    grey = photo.rgb.mean(-1) if photo.alpha is None else photo.alpha
    mask = grey > 0.5
    if not mask.any():
        raise InputError(f"{path}: the mask is empty", "paint the object white")
    return mask


def object_mask(photo: Photo, source: str = "auto", device: str = "auto") -> np.ndarray:
    """(H, W) bool of the object in a photograph.

    Args:
        photo: of which.
        source: a picture of the mask; "x,y", a point on the object, for a Segment-Anything model; ``auto`` takes the
            photograph's transparency, else rembg.
        device: where Segment Anything runs.

    Raises:
        InputError: a mask of another size, or an empty one.
        ResourceError: nothing is installed that could find the object, or its model is missing.
    """
    if source == "auto":
        mask = photo.alpha > 0.5 if photo.alpha is not None else _by_rembg(photo)
    elif (point := _as_point(source)) is not None:
        mask = segment_at(photo, point, device=device)
    else:
        mask = read_mask(source)
    if mask.shape != photo.size:
        raise InputError(
            f"the mask of {photo.name} is {mask.shape[1]}×{mask.shape[0]}, the image {photo.size[1]}×{photo.size[0]}",
            "give a mask of the image's size",
        )
    if not mask.any():
        raise InputError(f"no object was found in {photo.name}", "give its mask with --mask-a or --mask-b")
    return mask


def _as_point(text: str) -> tuple[float, float] | None:
    parts = text.split(",")
    try:
        x, y = map(float, parts)
    except ValueError:
        return None
    return x, y


def _by_rembg(photo: Photo) -> np.ndarray:
    try:
        import rembg
    except (ImportError, SystemExit) as error:  # it exits where there is no onnxruntime
        raise ResourceError(
            f"no mask for {photo.name}, and rembg, which could find its object, is not installed",
            "give masks with --mask-a and --mask-b, or pip install 'rembg[cpu]'",
        ) from error
    home = os.getenv("U2NET_HOME") or Path(os.getenv("XDG_DATA_HOME", "~")) / ".u2net"
    try:
        if not (Path(home).expanduser() / f"{REMBG_MODEL}.onnx").is_file():  # it would get it without asking
            raise FileNotFoundError("it is not on this machine")
        session = rembg.new_session(REMBG_MODEL)
        found = np.asarray(rembg.remove(photo.to_pil(), only_mask=True, session=session))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ResourceError(
            f"no mask for {photo.name}: rembg cannot use its model {REMBG_MODEL} ({reason})",
            f"give masks with --mask-a and --mask-b, or run `rembg d {REMBG_MODEL}` where there is a network",
        ) from error
    return (found if found.ndim == 2 else found[..., 0]) > 127


def segment_at(
    photo: Photo,
    point: tuple[float, float],
    *,
    model: str = "facebook/sam-vit-base",
    device: str = "auto",
) -> np.ndarray:
    """(H, W) bool of what lies at a point (x, y in pixels), by a Segment-Anything model of transformers.

    Args:
        photo: the image.
        point: on the object.
        model: folder, or a name whose files are in the Hugging Face cache; nothing is downloaded.
        device: where it runs.

    Raises:
        InputError: the point lies outside.
        ResourceError: the model is not there.
    """
    import torch

    from vision3d.device import resolve_device

    height, width = photo.size
    if not (0 <= point[0] <= width and 0 <= point[1] <= height):
        raise InputError(f"point {point} lies outside the image of {width}×{height}", "give pixels of it")
    place = resolve_device(device)
    try:
        from transformers import SamModel, SamProcessor

        processor: Any = SamProcessor.from_pretrained(model, local_files_only=True)
        with no_library_bars():
            network: Any = SamModel.from_pretrained(model, local_files_only=True).to(place)  # type: ignore[arg-type]
    except (OSError, ImportError, ValueError) as error:
        raise ResourceError(
            f"Segment Anything ({model}) is not on this machine",
            f"get it with `hf download {model}`, or give masks as pictures",
        ) from error
    inputs = processor(photo.to_pil(), input_points=[[list(point)]], return_tensors="pt").to(place)
    with torch.no_grad():
        output = network(**inputs)
    masks = processor.image_processor.post_process_masks(
        output.pred_masks.cpu(), inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu()
    )[0][0]
    return masks[int(output.iou_scores[0, 0].argmax())].numpy().astype(bool)
