"""Time of SD+DINO at published widths: ours against the published order of work, one process, one thread.

The published order encodes both images anew for every pair, runs the whole UNet, the image decoder and the text tower
for every tile, projects with a randomised PCA and compares row by row. Ours encodes an image once, stops after the last
tap, projects exactly and compares by products. The implicit captioner, which both would run alike, is left out.

Measured are CPU seconds of single images and pairs; the job of many images is extrapolated from them, for the published
order would take days. The row-wise loop is measured on some of its rows, which are all alike. Weights are recipe
values (deterministic, untrained): time does not depend on them.

    python benchmarks/sd_dino.py --images 5 --json benchmarks/sd_dino.json
    python benchmarks/sd_dino.py --sd-size 448 --tile 256 --dino-size 392   # a quarter of the work
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import timed
from torch import Tensor, nn

from vision3d.backbone.backbone import Backbone, fixed_noise
from vision3d.backbone.dino import MODELS, Dino
from vision3d.backbone.loading import empty_weights
from vision3d.backbone.schedule import add_noise
from vision3d.backbone.stable_diffusion import StableDiffusion
from vision3d.backbone.unet import walk
from vision3d.backbone.vae import SCALING_FACTOR
from vision3d.device import peak_rss
from vision3d.evaluation.parity.recipe import tensor
from vision3d.io.photo import Photo
from vision3d.pipelines.sd_dino import SDDino
from vision3d.pipelines.sd_dino.canvas import square
from vision3d.pipelines.sd_dino.features import read_features, tile_boxes
from vision3d.pipelines.sd_dino.fusion import fuse
from vision3d.pipelines.sd_dino.matching import nearest_cells
from vision3d.pipelines.sd_dino.options import SDDinoConfig
from vision3d.pipelines.sd_dino.pca import stack_layers

SEED = 7
UNET = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2, "cross_attention_dim": 768, "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": SCALING_FACTOR,
}  # fmt: skip


def filled(make: Callable[[], nn.Module]) -> Any:
    """A network with recipe values, made without holding anything twice."""
    with empty_weights():
        network = make()
    for name, value in list(network.state_dict().items()):
        owner, _, last = name.rpartition(".")
        module = network.get_submodule(owner)
        if last in module._parameters:
            values = torch.from_numpy(tensor(name, tuple(value.shape), SEED))
            module._parameters[last] = nn.Parameter(values, requires_grad=False)
    return network.eval()


def pictures(count: int) -> list[np.ndarray]:
    """Smooth random photographs of several shapes."""
    from PIL import Image

    shapes = [(640, 480), (480, 640), (600, 600), (500, 700), (720, 540)]
    rng = np.random.default_rng(SEED)
    coarse = [rng.integers(0, 256, (9, 12, 3), dtype=np.uint8) for _ in range(count)]
    return [
        np.asarray(Image.fromarray(c).resize(shapes[i % len(shapes)], Image.Resampling.BICUBIC))
        for i, c in enumerate(coarse)
    ]


# ---------------------------------------------------------------- the published order of work


@torch.no_grad()
def published_encode(
    pipeline: SDDino, text: nn.Module, context: Tensor, image: np.ndarray
) -> tuple[dict[str, Tensor], Tensor]:
    """Tile by tile: text tower, whole autoencoder, whole UNet; then DINO."""
    config, sd = pipeline.config, pipeline.backbone.sd
    assert sd is not None and sd.unet is not None and sd.vae is not None
    canvas = torch.from_numpy(square(image, config.sd_size)).permute(2, 0, 1).float() / 255
    size = config.sd_size
    counts: dict[str, Tensor] = {}
    strides = {"s5": 64, "s4": 32, "s3": 16}
    maps: dict[str, Tensor] = {}
    places = {"s5": "u0r1", "s4": "u1a1", "s3": "u2a1"}
    ids = torch.full((1, 77), 49407)
    for top, left, h, w in tile_boxes(size, size, config.tile):
        text(ids)
        tile = canvas[None, :, top : top + h, left : left + w] * 2 - 1
        latent = sd.vae.encode(tile).latent_dist.mean * SCALING_FACTOR
        noisy = add_noise(latent, fixed_noise((latent.shape[-2], latent.shape[-1])), config.timestep)
        taps = {tap.name: tap.tensor for tap in walk(sd.unet, noisy, config.timestep, context)}
        sd.vae.decode(latent / SCALING_FACTOR)
        for name, stride in strides.items():
            part = taps[places[name]][0]
            cells = size // stride
            maps.setdefault(name, torch.zeros(part.shape[0], cells, cells))
            counts.setdefault(name, torch.zeros(cells, cells))
            y, x = top // stride, left // stride
            maps[name][:, y : y + part.shape[1], x : x + part.shape[2]] += part
            counts[name][y : y + part.shape[1], x : x + part.shape[2]] += 1
    dino = torch.from_numpy(square(image, config.dino_size)).permute(2, 0, 1)[None].float() / 255
    network = pipeline.backbone.dino_network
    assert network is not None
    tokens = network.features(dino, layer=config.dino_layer).patches[0]
    return {name: maps[name] / counts[name] for name in maps}, tokens


@torch.no_grad()
def published_descriptors(
    first: tuple[dict[str, Tensor], Tensor], second: tuple[dict[str, Tensor], Tensor], dims: int
) -> list[Tensor]:
    """The randomised projection of both images, layer by layer, and fusion."""
    layers: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name in ("s5", "s4", "s3"):
        parts = [image[0][name].flatten(1).T for image in (first, second)]
        rows = torch.cat(parts)
        rows = rows - rows.mean(0)
        _, _, axes = torch.pca_lowrank(rows, q=min(dims, *rows.shape))
        projected = (rows @ axes).split([len(p) for p in parts])
        for layer, part, image in zip(layers, projected, (first, second), strict=True):
            layer[name] = part.T.unflatten(1, image[0][name].shape[-2:])
    side = int(len(first[1]) ** 0.5)
    from vision3d.pipelines.sd_dino.features import resize_map

    return [
        fuse(resize_map(stack_layers(layer), (side, side)).flatten(1).T, image[1])
        for layer, image in zip(layers, (first, second), strict=True)
    ]


@torch.no_grad()
def rowwise_similarity(a: Tensor, b: Tensor, rows: int) -> Tensor:
    """The published loop, on the first rows: one vector against all others."""
    metric = nn.PairwiseDistance(p=2)
    return torch.stack([-metric(a[i].expand_as(b), b) for i in range(rows)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=int, default=5, help="measured images of ours; all pairs of them are measured"
    )
    parser.add_argument(
        "--published-images", type=int, default=3, help="measured images of the published order"
    )
    parser.add_argument("--job", type=int, default=100, help="images of the job that is extrapolated")
    parser.add_argument("--loop-rows", type=int, default=100, help="measured rows of the row-wise loop")
    parser.add_argument("--sd-size", type=int, default=960)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--dino-size", type=int, default=840)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)

    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet, vae = filled(lambda: UNet2DConditionModel(**UNET)), filled(lambda: AutoencoderKL(**VAE))
    text = filled(lambda: CLIPTextModel(CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408
    )))  # fmt: skip
    dino = filled(lambda: Dino(MODELS["dinov2_vitb14"]))
    config = SDDinoConfig(sd_size=options.sd_size, tile=options.tile, dino_size=options.dino_size)
    sd = StableDiffusion(unet, vae, "epsilon", "sd1", Path("recipe"))
    pipeline = SDDino(Backbone(sd, None, dino, device="cpu", memory="high"), config)
    context = torch.from_numpy(tensor("context", (1, 77, 768), SEED)) * 768**0.5 * 0.1
    pipeline._contexts[""] = context  # a constant; computed once and kept on disk with real weights
    images = pictures(max(options.images, options.published_images))

    with torch.no_grad():
        latents = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(1))
        early = read_features(unet, latents, 100, context)
        whole = {
            t.name: t.tensor for t in walk(unet, latents, 100, context) if t.name in ("u0r1", "u1a1", "u2a1")
        }
    identical = all(
        torch.equal(early[n], whole[p]) for n, p in (("s5", "u0r1"), ("s4", "u1a1"), ("s3", "u2a1"))
    )
    print(f"taps by early exit bit-identical to the whole pass: {identical}", flush=True)

    ours_image: list[float] = []
    features = []
    for image in images[: options.images]:
        seconds, found = timed(lambda image=image: pipeline.encode(Photo(image)))  # type: ignore[misc]
        ours_image.append(seconds)
        features.append(found)
        print(f"ours: image {seconds:.1f} CPU-s", flush=True)
    ours_pair: list[float] = []
    for a, b in itertools.combinations(features, 2):

        def pair(a: Any = a, b: Any = b) -> Any:
            one, two = pipeline.describe(a, b)
            return nearest_cells(one.cells, two.cells, two.shape)

        ours_pair.append(timed(pair)[0])
    print(f"ours: pair {np.mean(ours_pair):.2f} CPU-s, mean of {len(ours_pair)}", flush=True)

    theirs_image: list[float] = []
    published = []
    for image in images[: options.published_images]:
        seconds, encoded = timed(lambda image=image: published_encode(pipeline, text, context, image))  # type: ignore[misc]
        theirs_image.append(seconds)
        published.append(encoded)
        print(f"published: image {seconds:.1f} CPU-s", flush=True)
    theirs_pair: list[float] = []
    for i in range(10):
        a, b = published[i % len(published)], published[(i + 1) % len(published)]
        projection, descriptors = timed(lambda a=a, b=b: published_descriptors(a, b, 256))  # type: ignore[misc]
        rows = min(options.loop_rows, len(descriptors[0]))
        loop, _ = timed(lambda d=descriptors, rows=rows: rowwise_similarity(d[0], d[1], rows))  # type: ignore[misc]
        theirs_pair.append(projection + loop / rows * len(descriptors[0]))
    print(
        f"published: pair {np.mean(theirs_pair):.1f} CPU-s beside its two images, mean of {len(theirs_pair)}"
    )
    difference = max(float((features[0].sd[n] - published[0][0][n]).abs().max()) for n in config.taps)

    mean = {
        "ours_image": float(np.mean(ours_image)),
        "ours_pair": float(np.mean(ours_pair)),
        "published_image": float(np.mean(theirs_image)),
        "published_pair": float(np.mean(theirs_pair)),
    }
    pairs = options.job * (options.job - 1) // 2
    job_ours = options.job * mean["ours_image"] + pairs * mean["ours_pair"]
    job_theirs = pairs * (2 * mean["published_image"] + mean["published_pair"])
    cold_ours = 2 * mean["ours_image"] + mean["ours_pair"]
    cold_theirs = 2 * mean["published_image"] + mean["published_pair"]
    report = {
        "sizes": {"sd": options.sd_size, "tile": options.tile, "dino": options.dino_size},
        "cpu_seconds": mean,
        "measured": {
            "ours_images": len(ours_image), "ours_pairs": len(ours_pair),
            "published_images": len(theirs_image), "published_pairs": len(theirs_pair),
        },
        "job": {
            "images": options.job, "pairs": pairs, "ours_hours": job_ours / 3600,
            "published_hours": job_theirs / 3600, "ratio": job_theirs / job_ours,
        },
        "cold_pair": {"ours": cold_ours, "published": cold_theirs, "ratio": cold_theirs / cold_ours},
        "early_exit_bit_identical": identical,
        "taps_largest_difference": difference,
        "peak_memory_gb": peak_rss() / 1e9,
    }  # fmt: skip
    print(json.dumps(report, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
