"""PrimeDepth as a person uses it, on a narrow network with random weights."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
)

from vision3d.backbone import sharing
from vision3d.backbone.loading import fingerprint, parameter_bytes
from vision3d.backbone.text import to_open_clip
from vision3d.errors import InputError, OutputError, WeightsError
from vision3d.evaluation.parity.recipe import RecipeWeights
from vision3d.geometry.tiling import Tiling
from vision3d.io.images import load_photo
from vision3d.pipelines.primedepth import PrimeDepth, PrimeDepthConfig
from vision3d.pipelines.primedepth.checkpoint import checkpoint_shapes, tower_apart
from vision3d.pipelines.primedepth.ensemble import SecondOpinion
from vision3d.pipelines.primedepth.options import DepthOptions
from vision3d.pipelines.primedepth.pipeline import working_size
from vision3d.pipelines.primedepth.tiling import blend_tiles

NARROW = PrimeDepthConfig(
    model_channels=32,
    num_head_channels=8,
    context_dim=48,
    channels2predictor=32,
    vae_ch=32,
    label_channels={"depth": 3, "segmentation": 150},
)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["VISION3D_HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def narrow_tensors() -> dict[str, torch.Tensor]:
    """Every tensor of a narrow checkpoint, text tower included."""
    tensors = dict(RecipeWeights(checkpoint_shapes(NARROW), 3))
    torch.manual_seed(0)
    tower = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=3,
            hidden_act="gelu",
            eos_token_id=49407,
            bos_token_id=49406,
        )
    )
    tensors |= to_open_clip(tower, "cond_stage_model.model.")
    tensors["betas"] = torch.zeros(1000)
    return {name: value.contiguous() for name, value in tensors.items()}


@pytest.fixture(scope="session")
def narrow_file(narrow_tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That checkpoint as one file."""
    path = tmp_path_factory.mktemp("weights") / "narrow.safetensors"
    save_file(narrow_tensors, path)
    return path


def picture(height: int = 72, width: int = 100, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).random((6, 8, 3))
    image = Image.fromarray((coarse * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


@pytest.fixture(scope="module")
def model(narrow_file: Path) -> PrimeDepth:
    return PrimeDepth.from_pretrained(narrow_file, config=NARROW, device="cpu")


@pytest.mark.parametrize("size", [(72, 100), (64, 64), (61, 47), (16, 200)])
def test_the_result_has_the_size_of_the_image(model: PrimeDepth, size: tuple[int, int]) -> None:
    result = model(picture(*size))
    assert result.depth.shape == size and result.depth.dtype == np.float32
    assert np.isfinite(result.depth).all() and result.depth.std() > 0
    assert result.space == "affine-invariant inverse depth"
    assert result.provenance.method == "PrimeDepth" and len(result.provenance.weights_sha256) == 64


def test_large_images_are_scaled_down_and_the_result_up_again(model: PrimeDepth) -> None:
    image = picture(90, 150)
    large = model(image, max_size=64)
    small = np.asarray(Image.fromarray(image).resize((64, 38), Image.Resampling.BILINEAR))
    assert working_size(90, 150, 64) == (38, 64)
    pixels = torch.from_numpy(small.copy()).permute(2, 0, 1)[None].float() / 255
    noise = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    depth = model.predict_depth(model.refine(model.encode(pixels), noise, model.prompt_embeddings("")))
    assert depth.shape == (1, 1, 32, 64)
    expected = F.interpolate(depth, size=(90, 150), mode="bilinear", align_corners=False)[0, 0].numpy()
    np.testing.assert_allclose(large.depth, expected, atol=1e-5)


def test_a_long_panorama_keeps_a_row_of_latents(model: PrimeDepth) -> None:
    assert working_size(100, 1600, 112) == (7, 112) and working_size(1600, 32, 112) == (112, 2)
    result = model(picture(16, 400), max_size=112)
    assert result.depth.shape == (16, 400) and np.isfinite(result.depth).all()


def test_the_geometry_of_a_cut_out_is_cut_out(model: PrimeDepth) -> None:
    alpha = np.zeros((96, 64, 1), np.uint8)
    alpha[20:80, 10:40] = 255
    result = model(np.dstack([picture(96, 64), alpha]))
    np.testing.assert_array_equal(result.usable(), alpha[..., 0] > 0)
    assert len(result.points().positions) == 60 * 30
    np.testing.assert_array_equal(result.colours()[0, 0], 255)


def test_equal_runs_are_equal_to_the_bit_and_seeds_matter(model: PrimeDepth) -> None:
    image = picture()
    first, second = model(image), model(image)
    assert np.array_equal(first.depth, second.depth)
    assert not np.array_equal(first.depth, model(image, seed=1).depth)
    assert not np.array_equal(first.depth, model(image, deterministic=False).depth)
    drawn = [model(image, generator=torch.Generator().manual_seed(5)).depth for _ in range(2)]
    assert np.array_equal(*drawn)


def test_a_batch_gives_what_single_images_give(model: PrimeDepth) -> None:
    images = [picture(seed=s) for s in range(3)] + [picture(64, 64, seed=9)]
    together = model(images, batch_size=4)
    for image, result in zip(images, together, strict=True):
        np.testing.assert_allclose(result.depth, model(image).depth, atol=2e-4 * result.depth.std())


def test_segmentation_comes_when_asked_for(model: PrimeDepth, narrow_file: Path) -> None:
    assert model(picture()).segmentation is None
    labels = model(picture(), segmentation=True).segmentation
    assert labels.shape == (72, 100) and labels.dtype == np.uint8 and labels.max() < 150
    without = PrimeDepth.from_pretrained(narrow_file, config=NARROW, device="cpu", segmentation_head=None)
    with pytest.raises(WeightsError, match="no segmentation head"):
        without(picture(), segmentation=True)


def test_networks_that_take_turns_give_the_same_bits(model: PrimeDepth, narrow_file: Path) -> None:
    frugal = PrimeDepth.from_pretrained(narrow_file, config=NARROW, device="cpu", memory="100M")
    assert frugal._sequential
    image = picture(seed=4)
    whole = model(image).depth
    sharing.shared_latents().clear()
    turns = frugal(image, tile=2048).depth
    assert np.array_equal(whole, turns)
    assert all(p.is_meta for n in (frugal.unet, frugal.refiner, frugal.depth_head) for p in n.parameters())
    assert np.array_equal(model(image).depth, whole)  # the networks that both share are fetched again


def test_a_run_in_16_bits_says_so_before_a_network_is_read(narrow_file: Path) -> None:
    frugal, other = (
        PrimeDepth.from_pretrained(narrow_file, config=NARROW, device="cpu", torch_dtype=dtype, memory="100M")
        for dtype in ("bf16", "fp32")
    )
    assert parameter_bytes(frugal.unet, frugal.refiner) * 2 == parameter_bytes(other.unet, other.refiner)
    # what reads and makes pictures keeps its precision
    assert parameter_bytes(frugal.vae, frugal.depth_head) == parameter_bytes(other.vae, other.depth_head)
    result = frugal(picture(16, 24, seed=5))
    assert result.provenance.settings["dtype"] == "bfloat16" and frugal.device == torch.device("cpu")


def test_a_caption_changes_the_result_and_is_embedded_once(model: PrimeDepth) -> None:
    image = picture()
    plain, captioned = model(image), model(image, prompt="a kitchen with a wooden table")
    assert not np.array_equal(plain.depth, captioned.depth)
    assert captioned.provenance.settings["prompt"] == "a kitchen with a wooden table"


def test_two_pipelines_share_networks_and_encode_an_image_once(model: PrimeDepth, narrow_file: Path) -> None:
    other = PrimeDepth.from_pretrained(narrow_file, config=NARROW, device="cpu")
    assert other.vae is model.vae and other.unet is model.unet and other.refiner is not model.refiner
    cache = sharing.shared_latents()
    image = picture(seed=77)
    model(image)
    misses = cache.misses
    calls: list[int] = []
    handle = model.vae.quant_conv.register_forward_hook(lambda *_: calls.append(1))
    other(image)
    handle.remove()
    assert cache.misses == misses and not calls


def test_a_cast_leaves_other_pipelines_alone_and_lasts(
    model: PrimeDepth, narrow_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, before = picture(seed=5), model.unet
    expected = model(image).depth
    for memory in ("auto", "1M"):
        half = PrimeDepth.from_pretrained(narrow_file, config=NARROW, device="cpu", memory=memory)
        half.to(torch.bfloat16)
        assert half.unet.dtype == half.refiner.dtype == torch.bfloat16 and model.unet is before
        assert half.vae.dtype == half.depth_head.dtype == torch.float32
        first = half(image)
        np.testing.assert_array_equal(half(image).depth, first.depth)
        assert first.provenance.settings["dtype"] == "bfloat16"
        assert np.corrcoef(first.depth.ravel(), expected.ravel())[0, 1] > 0.99
        assert np.array_equal(model(image).depth, expected)
    asked: list[object] = []
    monkeypatch.setattr(
        "vision3d.backbone.residency.loading.load_weights", lambda _, place=None, *__: asked.append(place)
    )
    half.to(torch.float16)
    assert set(asked) == {torch.device("cpu")}  # where it ran before, not where the file was read
    monkeypatch.undo()
    again = PrimeDepth.from_pretrained(narrow_file, config=NARROW, device="cpu")
    assert again.unet is model.unet and np.array_equal(again(image).depth, expected)
    other = PrimeDepth.from_pretrained(narrow_file, config=NARROW, device="cpu").to(dtype=torch.bfloat16)
    assert other.unet.dtype == torch.bfloat16
    # a network that somebody casts in place is nobody else's any more
    again.unet.double()
    assert PrimeDepth.from_pretrained(narrow_file, config=NARROW, device="cpu").unet.dtype == torch.float32
    again.unet.float()


class LargestSquare(TorchDispatchMode):
    """Remembers whether a tensor of ``cells x cells`` was ever made."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells, self.seen = cells, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor) and value.numel() >= self.cells**2:
                self.seen.append((str(func), tuple(value.shape)))
        return out


def test_no_map_of_all_queries_by_all_keys_is_ever_built(model: PrimeDepth) -> None:
    side = 56  # latents of 448 x 448: 3136 cells, whose full map would have ten million values
    noise = torch.randn(1, 4, side, side)
    context = model.prompt_embeddings("")
    with LargestSquare(side * side) as watch:
        refined = model.refine(torch.randn(1, 4, side, side), noise, context)
    assert not watch.seen, watch.seen[:3]
    assert refined.shape == (1, 32, side, side)


def test_the_folder_that_is_saved_gives_the_same_depth(model: PrimeDepth, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    image = picture(seed=2)
    expected = model(image, prompt="a lamp").depth
    again = PrimeDepth.from_pretrained(tmp_path / "saved", device="cpu")
    np.testing.assert_allclose(again(image, prompt="a lamp").depth, expected, atol=1e-5)
    assert (tmp_path / "saved" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert issubclass(PrimeDepth, DiffusionPipeline)


def test_a_file_without_the_autoencoders_decoder_is_saved_and_loaded(
    narrow_tensors: dict[str, torch.Tensor], model: PrimeDepth, tmp_path: Path
) -> None:
    unused = ("first_stage_model.decoder.", "first_stage_model.post_quant_conv.")
    path = tmp_path / "half.safetensors"
    save_file({name: value for name, value in narrow_tensors.items() if not name.startswith(unused)}, path)
    half = PrimeDepth.from_pretrained(path, config=NARROW, device="cpu")
    half.save_pretrained(tmp_path / "saved")
    again = PrimeDepth.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.vae.decoder is None
    np.testing.assert_allclose(again(picture()).depth, model(picture()).depth, atol=1e-4)


def test_a_folder_is_saved_whole_or_not_at_all(model: PrimeDepth, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        model.save_pretrained(tmp_path / "file" / "below")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model.refiner, "save_pretrained", full)
    with pytest.raises(OutputError):
        model.save_pretrained(tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_further_arguments_of_diffusers_are_passed_over_and_others_refused(narrow_file: Path) -> None:
    usual = {"local_files_only": True, "variant": "fp16", "use_safetensors": True, "low_cpu_mem_usage": True}
    assert PrimeDepth.from_pretrained(narrow_file, config=NARROW, device="cpu", **usual).vae is not None
    for name in ("device_map", "scheduler"):
        with pytest.raises(InputError, match=f"knows no {name}="):
            PrimeDepth.from_pretrained(narrow_file, config=NARROW, **{name: "auto"})


def test_weights_without_a_tower_take_the_pulled_one_and_say_so(
    narrow_tensors: dict[str, torch.Tensor], model: PrimeDepth, tmp_path: Path, monkeypatch
) -> None:
    prefix = "cond_stage_model.model."
    bare, tower = tmp_path / "bare.safetensors", tmp_path / "tower.safetensors"
    save_file({k: v for k, v in narrow_tensors.items() if not k.startswith(prefix)}, bare)
    save_file({k.removeprefix(prefix): v for k, v in narrow_tensors.items() if k.startswith(prefix)}, tower)

    def load(**options: object) -> PrimeDepth:
        return PrimeDepth.from_pretrained(bare, config=NARROW, device="cpu", **options)

    with pytest.raises(WeightsError, match="weights pull openclip-vit-h-14"):
        load()(picture())
    with pytest.raises(WeightsError, match="not here"):
        load(text_encoder="openclip-vit-h-14")
    monkeypatch.setattr("vision3d.weights.registry.pulled", lambda name: SimpleNamespace(label=name))
    monkeypatch.setattr("vision3d.weights.registry.entry", lambda name: tower)
    for pipeline in (load(), load(text_encoder="openclip-vit-h-14"), load(text_encoder=tower)):
        result = pipeline(picture(), prompt="a lamp")
        np.testing.assert_allclose(result.depth, model(picture(), prompt="a lamp").depth, atol=1e-4)
        assert result.provenance.settings["text_encoder_sha256"] == fingerprint(tower)
        # known before any network is loaded, so that a repeated run with another tower does not skip
        assert tower_apart(bare) == tower
    given = load(text_encoder=model.text_encoder)(picture())
    assert "text_encoder_sha256" not in given.provenance.settings
    assert load(text_encoder=None).text_encoder is None


def test_lightning_checkpoints_load(
    narrow_tensors: dict[str, torch.Tensor], model: PrimeDepth, tmp_path: Path
) -> None:
    path = tmp_path / "primedepth.ckpt"
    torch.save({"state_dict": narrow_tensors, "epoch": 3, "global_step": 100}, path)
    other = PrimeDepth.from_pretrained(path, config=NARROW, device="cpu")
    image = picture(seed=3)
    assert np.array_equal(other(image).depth, model(image).depth)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("labeller.depth_predictor.conv_in.weight", "missing"),
        ("labeller.convs_merge.4.bias", "missing"),
        ("model.diffusion_model.middle_block.1.norm.weight", "missing"),
        ("first_stage_model.quant_conv.weight", "missing"),
        ("labeller.surprise.weight", "unexpected"),
    ],
)
def test_wrong_keys_are_named(
    narrow_tensors: dict[str, torch.Tensor], tmp_path: Path, name: str, words: str
) -> None:
    changed = dict(narrow_tensors)
    if words == "missing":
        del changed[name]
    else:
        changed[name] = torch.zeros(3)
    path = tmp_path / "changed.safetensors"
    save_file(changed, path)
    with pytest.raises(WeightsError, match=words) as caught:
        PrimeDepth.from_pretrained(path, config=NARROW, device="cpu")
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_other_models_and_nan_are_refused(narrow_tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    foreign, broken = tmp_path / "vit.safetensors", tmp_path / "nan.safetensors"
    save_file({"blocks.0.attn.qkv.weight": torch.ones(3, 3)}, foreign)
    with pytest.raises(WeightsError, match="not a PrimeDepth checkpoint"):
        PrimeDepth.from_pretrained(foreign, device="cpu")
    name = "labeller.refiner.out.2.bias"
    save_file({**narrow_tensors, name: torch.full_like(narrow_tensors[name], torch.nan)}, broken)
    with pytest.raises(WeightsError, match=r"conv_out\.bias holds NaN"):
        PrimeDepth.from_pretrained(broken, config=NARROW, device="cpu")
    with pytest.raises(WeightsError, match="no such weights"):
        PrimeDepth.from_pretrained(tmp_path / "nothing.ckpt", device="cpu")


def test_tiles_keep_to_the_whole(model: PrimeDepth) -> None:
    image = picture(160, 216, seed=6)
    tiled = model(image, tile=128)
    assert tiled.depth.shape == (160, 216) and np.isfinite(tiled.depth).all()
    assert tiled.provenance.settings["tile"] == 128


def test_want_of_memory_halves_the_batch_then_cuts_tiles(
    model: PrimeDepth, narrow_file: Path, monkeypatch, capsys
) -> None:
    """What comes out is what the same tiles give when they are asked for."""
    image = picture(128, 264)
    poor = PrimeDepth.from_pretrained(narrow_file, config=NARROW, device="cpu")
    sizes = []
    real = poor.refine

    def refine(latents, *rest, **options):
        sizes.append(tuple(latents.shape))
        if latents.shape[0] * latents.shape[2] * latents.shape[3] > 2 * 16 * 16:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return real(latents, *rest, **options)

    monkeypatch.setattr(poor, "refine", refine)
    results = poor([image, image], batch_size=2)
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if not line.startswith(("tiles:", "PrimeDepth weights:"))] == [
        "out of memory with 2 images at once; going on with 1",
        "out of memory with 1 image at once; going on with tiles of 128 pixels",
    ]
    assert sizes[:2] == [(2, 4, 16, 33), (1, 4, 16, 33)] and all(size[3] <= 16 for size in sizes[2:])
    asked = model(image, tile=128).depth
    for result in results:
        np.testing.assert_array_equal(result.depth, asked)
        assert result.provenance.settings["tile"] is None
        assert result.provenance.remarks == ("processed in tiles of 128 pixels to fit into memory",)


def test_another_attempt_draws_the_same_noise(model: PrimeDepth, monkeypatch) -> None:
    image, other = picture(), picture(seed=1)
    wanted = model([image, other], generator=torch.Generator().manual_seed(5))
    real, calls = model.refine, []

    def refine(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError
        return real(*arguments, **options)

    monkeypatch.setattr(model, "refine", refine)
    again = model([image, other], batch_size=2, generator=torch.Generator().manual_seed(5))
    assert len(calls) == 3
    for first, second in zip(wanted, again, strict=True):
        np.testing.assert_array_equal(first.depth, second.depth)


def test_a_budget_splits_batches_before_it_cuts_tiles(
    model: PrimeDepth, narrow_file: Path, monkeypatch
) -> None:
    frugal = PrimeDepth.from_pretrained(narrow_file, config=NARROW, device="cpu")
    sizes = []
    real = frugal.refine
    monkeypatch.setattr(frugal, "refine", lambda x, *rest: sizes.append(tuple(x.shape)) or real(x, *rest))
    per_pixel = 4 * (2 * frugal.depth_head.config.block_out_channels[0])
    per_pixel += 4 * (3 * frugal.depth_head.config.block_out_channels[1])
    for pixels, wanted in ((2.5 * 72 * 96, [2, 2, 1]), (0.9 * 72 * 96, [1] * 5)):
        sizes.clear()
        monkeypatch.setattr(frugal, "_pixels_that_fit", lambda pixels=pixels: pixels)
        frugal([picture(72, 96, seed) for seed in range(5)], batch_size=5)
        assert [size[0] for size in sizes] == wanted
    monkeypatch.undo()
    frugal._memory_budget = 2_000_000_000
    assert 0 < frugal._pixels_that_fit() * per_pixel < 2_000_000_000 - (2 << 29)


def test_tiles_of_a_known_map_in_any_scale_give_it_back() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, 1, 6, 8, generator=generator)
    truth = F.interpolate(coarse, size=(200, 264), mode="bicubic")
    tiling = Tiling(200, 264, 128)
    covered = torch.zeros(200, 264)
    parts = []
    for top, left, bottom, right in tiling.boxes:
        covered[top:bottom, left:right] += 1
        scale = 0.5 + torch.rand(2, 1, 1, 1, generator=generator)
        shift = torch.randn(2, 1, 1, 1, generator=generator)
        parts.append(truth[:, :, top:bottom, left:right] * scale + shift)
    assert covered.min() >= 1 and len(tiling.boxes) > 4
    torch.testing.assert_close(blend_tiles(parts, tiling, truth), truth, atol=1e-4, rtol=0)


class Twin(torch.nn.Module):
    """An estimator that answers with an affine copy of a known map."""

    def __init__(self, depth: np.ndarray) -> None:
        super().__init__()
        self.depth = torch.nn.Parameter(torch.from_numpy(depth)[None] * 7 - 3)

    def forward(self, pixels: torch.Tensor) -> object:
        size = pixels.shape[-2:]
        assert size[0] % 14 == 0 and size[1] % 14 == 0
        out = F.interpolate(self.depth[None], size=size, mode="bilinear", align_corners=False)[0]
        return type("Output", (), {"predicted_depth": out})


def test_averaging_with_an_equal_map_in_another_scale_changes_little(model: PrimeDepth) -> None:
    image = picture(140, 140, seed=8)
    alone = model(image).depth
    both = model(image, second_opinion=SecondOpinion(Twin(alone), "twin", side=140))
    np.testing.assert_allclose(both.depth, alone, atol=1e-3 * alone.std())
    assert both.provenance.settings["second_opinion"] == "twin"


def test_options_out_of_range_are_refused(model: PrimeDepth) -> None:
    for options in ({"max_size": 4}, {"tile": 8}, {"seed": 2**70}):
        with pytest.raises(InputError, match=next(iter(options))):
            model(picture(), **options)


def test_a_batch_of_nothing_is_refused(model: PrimeDepth) -> None:
    with pytest.raises(InputError, match="batch_size 0"):
        model([picture(), picture()], batch_size=0)


def test_a_second_opinion_is_found_by_name(model: PrimeDepth, tmp_path: Path, monkeypatch) -> None:
    config = DepthAnythingConfig(
        backbone_config=Dinov2Config(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, patch_size=14, image_size=28,
            out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True,
        ),
        reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, head_hidden_size=8,
    )  # fmt: skip
    for seed in (0, 1):
        torch.manual_seed(seed)
        DepthAnythingForDepthEstimation(config).save_pretrained(tmp_path / f"{seed}" / "da")
    with pytest.raises(WeightsError, match="depth-anything-v2-small"):
        model(picture(), second_opinion="depth-anything-v2-small")
    results = [model(picture(), second_opinion=tmp_path / f"{seed}" / "da") for seed in (0, 1)]
    first, second = (result.provenance.settings for result in results)
    assert first["second_opinion"] == second["second_opinion"] == "da"
    assert first["second_opinion_sha256"] != second["second_opinion_sha256"]
    monkeypatch.setattr("vision3d.weights.registry.pulled", lambda name: SimpleNamespace(label=name))
    monkeypatch.setattr("vision3d.weights.registry.entry", lambda name: tmp_path / "1" / "da")
    by_name = model(picture(), second_opinion="depth-anything-v2-small")
    np.testing.assert_array_equal(by_name.depth, results[1].depth)


def test_group_norm_epsilons_are_the_published_ones(model: PrimeDepth) -> None:
    def epsilons(module: torch.nn.Module) -> set[float]:
        return {layer.eps for layer in module.modules() if isinstance(layer, torch.nn.GroupNorm)}

    assert (
        epsilons(model.vae.encoder)
        == epsilons(model.depth_head)
        == epsilons(model.segmentation_head)
        == {1e-5}
    )
    for network in (model.unet, model.refiner):
        for name, layer in network.named_modules():
            if isinstance(layer, torch.nn.GroupNorm):
                transformer = "attention" in name
                assert layer.eps == (1e-6 if transformer else 1e-5), name


def test_streaming_reads_no_further_than_the_batch(model: PrimeDepth) -> None:
    read: list[int] = []

    def photos():
        for i in range(5):
            read.append(i)
            yield load_photo(picture(48, 48, seed=i))

    stream = model.stream(photos(), DepthOptions(), batch_size=2)
    next(stream)
    assert read == [0, 1]
    assert len(list(stream)) == 4
