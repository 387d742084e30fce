"""Flicker of a video's normals with and without what is carried from frame to frame, and what that costs in accuracy.

    python benchmarks/video.py

The videos are walks through procedural scenes that no training has seen, with exact normals: the camera slides
sideways and turns, and every frame has sensor noise of its own. Flicker is the angle between the normals of a frame
and those of the frame before, carried along by optical flow where frames match; the exact normals' own is printed
beside it. Weights: the pulled or embedded ones, or --weights.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from vision3d.evaluation.normal_metrics import NormalMetrics, normal_metrics
from vision3d.geometry.flow import flicker, motion
from vision3d.io.photo import Photo
from vision3d.pipelines.stablenormal import StableNormal
from vision3d.pipelines.stablenormal.options import NormalOptions
from vision3d.pipelines.stablenormal.video import Stabiliser
from vision3d.synthetic import Sample, cameras
from vision3d.synthetic.draw import Draw
from vision3d.synthetic.render import VIEWS, render_view
from vision3d.synthetic.scene import rotation_y
from vision3d.synthetic.worlds import world
from vision3d.training.data import HELD_OUT_SEED


def walk(
    seed: int,
    frames: int,
    size: tuple[int, int],
    step: float = 0.01,
    turn: float = 0.25,
    noise: float = 2.0,
) -> list[Sample]:
    """Frames of a camera that slides sideways and turns.

    Args:
        seed: of the scene and the first view.
        frames: how many.
        size: (height, width) in pixels.
        step: way between frames, relative to the median depth.
        turn: degrees between frames.
        noise: standard deviation of each frame's own noise, in steps of 8 bits.
    """
    place = world(seed // VIEWS)
    view = cameras.choose(place, Draw(2, seed), size[0] / size[1])
    yaw = rotation_y(math.radians(turn))
    random = np.random.default_rng(seed)
    shown: list[Sample] = []
    for _ in range(frames):
        frame = render_view(place, view, Draw(2, seed), size, seed)
        noisy = frame.image + random.normal(0, noise, frame.image.shape)
        shown.append(replace(frame, image=np.clip(np.rint(noisy), 0, 255).astype(np.uint8)))
        way = step * float(np.median(shown[0].depth[np.isfinite(shown[0].depth)]))
        pose = view.cam_to_world.copy()
        pose[:3, 3] += way * pose[:3, 0]
        pose[:3, :3] = pose[:3, :3] @ yaw
        view = replace(view, cam_to_world=pose)
    return shown


def error(fields: list[np.ndarray], samples: list[Sample]) -> float:
    """Mean angular error in degrees where there is a surface, over frames."""
    pairs = zip(fields, samples, strict=True)
    return NormalMetrics.average(normal_metrics(field, sample.normals) for field, sample in pairs).mean


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(120, 160), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--shares", type=float, nargs="+", default=(0.0, 0.5, 0.8), help="see --stabilise")
    parser.add_argument("--weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    report: dict[str, dict[str, dict[str, float]]] = {}
    for turbo in (True, False):
        pipeline = StableNormal.from_pretrained(given.weights, turbo=turbo, device=given.device)
        options = NormalOptions(turbo=turbo)
        rows: dict[str, list[tuple[float, float]]] = {}
        for index in range(given.scenes):
            samples = walk(HELD_OUT_SEED + VIEWS * (index + 1), given.frames, tuple(given.size))
            motions = [motion(a.image, b.image) for a, b in pairwise(samples)]
            truth = [s.normals for s in samples]
            fields = {"exact": truth}
            photos = [
                Photo(s.image, f"clip/{i:06d}", Path(f"walk{index}.mp4")) for i, s in enumerate(samples)
            ]
            fields["alone"] = [pipeline.predict([p], options)[0].normals for p in photos]
            for share in given.shares:
                steady = Stabiliser(pipeline, replace(options, stabilise=share))
                fields[f"stabilise {share:g}"] = [steady(p).normals for p in photos]
            for name, field in fields.items():
                rows.setdefault(name, []).append((flicker(field, motions), error(field, samples)))
        stage = "one step" if turbo else "both stages"
        report[stage] = {}
        for name, values in rows.items():
            shaken, wrong = (float(v) for v in np.nanmean(np.array(values), axis=0))
            report[stage][name] = {"flicker_degrees": round(shaken, 3), "error_degrees": round(wrong, 3)}
            print(f"{stage}, {name}: flicker {shaken:.2f} degrees, error {wrong:.2f} degrees", flush=True)
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
