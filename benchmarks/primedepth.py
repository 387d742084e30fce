"""Time and memory of PrimeDepth at published widths, against the published order of work and one-step Marigold.

One process, one thread, the same weights and images; rounds of the contenders alternate. Only the ratios mean
something on another machine. Weights are recipe values (deterministic, untrained): speed does not depend on them.

    python benchmarks/primedepth.py --sizes 256 512 --rounds 3 --json benchmarks/primedepth.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from peers import marigold, timed
from torch import Tensor

from vision3d.backbone import loading
from vision3d.backbone.featurecache import shared_latents
from vision3d.backbone.schedule import add_noise
from vision3d.device import peak_rss
from vision3d.pipelines.primedepth import PrimeDepth
from vision3d.pipelines.primedepth.checkpoint import checkpoint_shapes, load_networks

SEED = 7


def recipe_checkpoint(path: Path) -> Path:
    """A checkpoint of published size with recipe values, written once."""
    if not path.is_file():
        from safetensors.torch import save_file

        from vision3d.evaluation.parity.recipe import tensor

        path.parent.mkdir(parents=True, exist_ok=True)
        values = {
            name: torch.from_numpy(tensor(name, shape, SEED)) for name, shape in checkpoint_shapes().items()
        }
        save_file(values, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    return path


# ---------------------------------------------------------------- the published order of work


def attention_with_map(attention: Any, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Attention as published: the probabilities are built, kept and returned."""
    q, k, v = (
        rearrange(project(source), "b n (h d) -> b h n d", h=attention.heads)
        for project, source in ((attention.to_q, x), (attention.to_k, context), (attention.to_v, context))
    )
    probabilities = (torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5).softmax(dim=-1)
    out = torch.einsum("bhij,bhjd->bhid", probabilities, v)
    return attention.to_out[0](rearrange(out, "b h n d -> b n (h d)")), probabilities


def transformer_with_maps(block: Any, x: Tensor, context: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    height = x.shape[-2]
    h = block.proj_in(rearrange(block.norm(x), "b c y x -> b (y x) c"))
    layer = block.transformer_blocks[0]
    normed = layer.norm1(h)
    out, self_map = attention_with_map(layer.attn1, normed, normed)
    h = h + out
    out, cross_map = attention_with_map(layer.attn2, layer.norm2(h), context)
    h = h + out
    h = h + layer.ff(layer.norm3(h))
    # contiguous, as published: convolutions of another layout would copy their weights at every call
    out = rearrange(block.proj_out(h), "b (y x) c -> b c y x", y=height).contiguous()
    return out + x, (self_map, cross_map)


def pool_maps(maps: tuple[Tensor, Tensor], height: int, width: int) -> Tensor:
    """The published preparation of one block's maps: resize, pool, resize, normalise."""
    self_map, cross_map = maps
    batch, heads = self_map.shape[:2]
    keys = rearrange(self_map, "b h n (y x) -> (b h) n y x", y=height)
    keys = F.interpolate(
        keys, size=(height + 8 - height % 8, width + 8 - width % 8), mode="bilinear", align_corners=False
    )
    keys = F.avg_pool2d(keys, (max(1, height // 8), max(1, width // 8)))
    keys = F.interpolate(keys, size=(8, 8), mode="bilinear", align_corners=False)
    keys = rearrange(keys, "(b h) n p q -> b h (p q) n", b=batch)
    keys = keys / keys.amax(dim=(-2, -1), keepdim=True)
    pooled = keys.reshape(batch, heads * 64, height, width)
    cross = rearrange(cross_map, "b h (y x) t -> b (h t) y x", y=height)
    return torch.cat([pooled, cross], dim=1)


def published(networks: dict[str, Any], image: Tensor, noise: Tensor, context: Tensor) -> Tensor:
    """Encode, whole UNet keeping every map, prepare all maps, refiner, both heads."""
    vae, unet, refiner = networks["vae"], networks["unet"], networks["refiner"]
    mean, _ = vae.quant_conv(vae.encoder(image * 2 - 1)).chunk(2, dim=1)
    noisy = add_noise(mean * vae.config.scaling_factor, noise, 1)
    temb = unet.time_embedding(unet.time_proj(torch.ones(1, dtype=torch.long)))

    h, encoder_maps, skips = unet.conv_in(noisy), [None], []
    skips.append(h)
    for level in unet.down_blocks:
        for j, resnet in enumerate(level.resnets):
            h, maps = resnet(h, temb), None
            if hasattr(level, "attentions"):
                h, maps = transformer_with_maps(level.attentions[j], h, context)
            skips.append(h)
            encoder_maps.append((maps, h.shape[-2:]) if maps else None)
        if level.downsamplers:
            h = level.downsamplers[0](h)
            skips.append(h)
            encoder_maps.append(None)
    h = unet.mid_block.resnets[0](h, temb)
    h, maps = transformer_with_maps(unet.mid_block.attentions[0], h, context)
    h = unet.mid_block.resnets[1](h, temb)
    decoder_maps, features = [(maps, h.shape[-2:])], []
    for level in unet.up_blocks:
        for j, resnet in enumerate(level.resnets):
            h = torch.cat([h, skips.pop()], dim=1)
            features.append(h)
            h, maps = resnet(h, temb), None
            if hasattr(level, "attentions"):
                h, maps = transformer_with_maps(level.attentions[j], h, context)
            decoder_maps.append((maps, h.shape[-2:]) if maps else None)
        if level.upsamplers:
            h = level.upsamplers[0](h, skips[-1].shape[-2:])
    unet.conv_out(F.silu(unet.conv_norm_out(h)))  # the noise prediction, which nobody reads

    prepare = lambda entry: None if entry is None else pool_maps(entry[0], *entry[1])  # noqa: E731
    pooled = [(prepare(decoder_maps[i]), prepare(encoder_maps[11 - i])) for i in range(12)]
    del decoder_maps, encoder_maps
    state = None
    for i, feature in enumerate(features):
        x = refiner.merge(i, feature, *pooled[i], None)
        if state is not None:
            block = refiner.blocks[i - 1]
            if block.upsampler is not None:
                state = block.upsampler(state, x.shape[-2:])
            x = torch.cat([state, x], dim=1)
        state = refiner.blocks[i](x, temb, context)
    refined = refiner.conv_out(F.silu(refiner.norm_out(state)))
    depth = networks["depth_head"].decoder(refined).mean(dim=1, keepdim=True)
    networks["segmentation_head"].decoder(refined)
    return depth


def ours(networks: dict[str, Any], image: Tensor, noise: Tensor, context: Tensor) -> Tensor:
    shared_latents().clear()  # a photograph that was never seen
    pipeline = PrimeDepth(**networks)
    return pipeline.predict_depth(pipeline.refine(pipeline.encode(image), noise, context))


# ---------------------------------------------------------------- measuring


def inputs(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    coarse = torch.rand(1, 3, 16, 16, generator=generator)
    image = F.interpolate(coarse, size=(size, size), mode="bicubic", antialias=False).clamp(0, 1)
    noise = torch.randn(1, 4, size // 8, size // 8, generator=generator)
    context = torch.randn(1, 77, 1024, generator=generator)
    return image.to(device), noise.to(device), context.to(device)


def peak_memory(contender: str, size: int, checkpoint: Path) -> float:
    """Peak resident gigabytes of one contender in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--only",
        contender,
        "--sizes",
        str(size),
        "--checkpoint",
        str(checkpoint),
    ]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])["peak_gb"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("~/.cache/vision3d/recipe/primedepth.safetensors")
    )
    parser.add_argument("--no-memory", action="store_true", help="skip the runs that measure peak memory")
    parser.add_argument("--only", choices=["ours", "published", "marigold"], help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    checkpoint = recipe_checkpoint(options.checkpoint.expanduser())
    networks = load_networks(checkpoint)
    for name, network in networks.items():
        if options.only in (None, "published", "marigold") or name != "segmentation_head":
            parts = (
                ("encoder", "quant_conv") if name == "vae" and options.only in ("ours", "published") else ()
            )
            loading.load_weights(network, device, parts)

    if options.only:
        image, noise, context = inputs(options.sizes[0], device)
        if options.only == "marigold":
            marigold("depth", networks["unet"], networks["vae"], 1, 2)(image)
        else:
            {"ours": ours, "published": published}[options.only](networks, image, noise, context)
        print(json.dumps({"peak_gb": peak_rss() / 1e9}))
        return

    for network in networks.values():  # mapped files: whoever goes first would pay for reading them
        for weight in network.parameters():
            weight.sum()
    one_step = marigold("depth", networks["unet"], networks["vae"], 1, 2)
    report: dict[str, Any] = {
        "threads": options.threads,
        "device": str(device),
        "rounds": options.rounds,
        "sizes": {},
    }
    for size in options.sizes:
        image, noise, context = inputs(size, device)
        contenders: dict[str, Callable[[], Tensor]] = {
            "ours": lambda i=image, n=noise, c=context: ours(networks, i, n, c),
            "published": lambda i=image, n=noise, c=context: published(networks, i, n, c),
            "marigold": lambda i=image: one_step(i),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        outputs: dict[str, Tensor] = {}
        for _ in range(options.rounds):
            for name, run in contenders.items():
                elapsed, outputs[name] = timed(run, device)
                seconds[name].append(elapsed)
        best = {name: min(values) for name, values in seconds.items()}
        difference = (outputs["ours"] - outputs["published"]).abs() / outputs["published"].std()
        row: dict[str, Any] = {
            "seconds": {name: round(value, 3) for name, value in best.items()},
            "speedup_over_published": round(best["published"] / best["ours"], 3),
            "time_relative_to_marigold_1_step": round(best["ours"] / best["marigold"], 3),
            "difference_max_of_std": float(difference.max()),
            "difference_mean_of_std": float(difference.mean()),
        }
        if device.type == "cpu" and not options.no_memory:
            row["peak_gb"] = {name: round(peak_memory(name, size, checkpoint), 2) for name in contenders}
        report["sizes"][size] = row
        print(f"{size} px: {json.dumps(row)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
