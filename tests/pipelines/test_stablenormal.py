"""StableNormal as a person uses it, on narrow networks with random weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.controlnets.controlnet import ControlNetModel
from PIL import Image
from safetensors.torch import load_file, save_file

from vision3d.backbone import sharing
from vision3d.backbone.dino import Dino, DinoConfig
from vision3d.backbone.featurecache import shared_latents
from vision3d.backbone.unet import denoise
from vision3d.cli import main
from vision3d.errors import InputError, WeightsError
from vision3d.io.images import Photo, load_photo
from vision3d.pipelines.stablenormal import StableNormal, imaging
from vision3d.pipelines.stablenormal import pipeline as module
from vision3d.pipelines.stablenormal.checkpoint import line_of, load_semantic, parse_version
from vision3d.pipelines.stablenormal.matting import Matting
from vision3d.pipelines.stablenormal.network import ControlNetVAEModel
from vision3d.pipelines.stablenormal.options import NormalOptions
from vision3d.pipelines.stablenormal.training import image_branch_of, semantic_branch_of
from vision3d.weights import MINI

SIZES = {
    "in_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "block_out_channels": (16, 16, 16, 16),
    "norm_num_groups": 8,
    "attention_head_dim": (2, 2, 2, 2),
    "cross_attention_dim": 64,
    "use_linear_projection": True,
}
UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
DINO = DinoConfig(width=16, depth=1, heads=2, patch=14, grid=4, hidden=32)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    import os

    os.environ["VISION3D_HOME"] = str(tmp_path_factory.mktemp("home"))


def networks(seed: int = 0) -> dict[str, torch.nn.Module]:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(out_channels=4, sample_size=8, up_block_types=UP, **SIZES)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        layers_per_block=1,
        scaling_factor=0.18215,
    )
    return {"unet": unet, "controlnet": image_branch_of(unet), "vae": vae}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ours with both stages, a DINO network and the embedded text tower."""
    from transformers import CLIPTokenizer

    from vision3d.backbone.text import load_text_tower

    first, second = networks(0), networks(1)
    semantic = semantic_branch_of(second["unet"], DINO.width, (16,))
    for conv in semantic.controlnet_down_blocks:
        torch.nn.init.normal_(conv.weight, std=0.05)
    dino = Dino(DINO)
    torch.nn.init.normal_(dino.pos_embed, std=0.5)
    place = tmp_path_factory.mktemp("weights") / "both"
    StableNormal(
        **first,
        refine_unet=second["unet"],
        refine_controlnet=second["controlnet"],
        dino_controlnet=semantic,
        dino=dino,
        text_encoder=load_text_tower(MINI / "primedepth" / "text_encoder", dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(MINI / "primedepth" / "tokenizer"),
        default_resolution=0,
        default_processing_resolution=64,
        default_denoising_steps=4,
        dino_side=56,
    ).save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def pipeline(folder: Path) -> StableNormal:
    return StableNormal.from_pretrained(folder)


def picture(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).random((6, 8, 3))
    image = Image.fromarray((coarse * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


class Calls:
    """Counts forward passes of networks."""

    def __init__(self, **modules: torch.nn.Module) -> None:
        self.count = dict.fromkeys(modules, 0)
        self._hooks = [m.register_forward_hook(self._note(name)) for name, m in modules.items()]

    def _note(self, name: str):
        def note(*_: object) -> None:
            self.count[name] += 1

        return note

    def remove(self) -> dict[str, int]:
        for hook in self._hooks:
            hook.remove()
        return self.count


def test_results_are_unit_vectors_at_the_photographs_size(pipeline: StableNormal) -> None:
    result = pipeline(picture(50, 70))
    assert result.normals.shape == (50, 70, 3) and result.normals.dtype == np.float32
    assert np.allclose(np.linalg.norm(result.normals, axis=-1), 1, atol=1e-5)
    assert pipeline(picture(50, 70), match_input=False).normals.shape == (45, 64, 3)
    assert pipeline(picture(50, 70), processing_resolution=40, match_input=False).size == (28, 40)


def test_ten_steps_take_six_image_passes_and_one_encode_and_decode(
    pipeline: StableNormal, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_latents().clear()
    coded = {"encode": 0, "decode": 0}
    for name, function in (("encode", module.encode_moments), ("decode", module.decode)):

        def counted(*arguments: object, _name: str = name, _function=function, **options: object):
            coded[_name] += 1
            return _function(*arguments, **options)

        monkeypatch.setattr(module, {"encode": "encode_moments", "decode": "decode"}[name], counted)
    calls = Calls(first=pipeline.controlnet, second=pipeline.refine_controlnet, dino=pipeline.dino)
    pipeline(picture(), steps=10)
    # 401 six times, 301, 201, 101 and 1: five distinct timesteps, and the first stage's own
    assert calls.remove() == {"first": 1, "second": 5, "dino": 1}
    assert coded == {"encode": 1, "decode": 1}


def test_cached_image_passes_give_the_numbers_of_the_published_order(pipeline: StableNormal) -> None:
    x = torch.from_numpy(picture().copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    plan = pipeline.plan(NormalOptions(steps=6))
    draws = pipeline.draw((6, 8), plan, torch.Generator().manual_seed(0))
    fast = pipeline.solve(x, draws, plan)

    from vision3d.pipelines.stablenormal.sampler import HeuristicSchedule

    schedule, latent = HeuristicSchedule.of(6), pipeline.encode(x)
    with torch.no_grad():
        sample = x0 = pipeline.one_step(latent, draws.start, plan.t_start, plan.context)
        injected = pipeline.semantic_residuals(x, (6, 8), plan.refine_context)
        fresh = iter(draws.fresh)
        for i, t in enumerate(schedule.timesteps):
            residuals = pipeline.refine_controlnet(latent, t, plan.refine_context)
            x0 = denoise(
                pipeline.refine_unet,
                sample,
                t,
                plan.refine_context,
                residuals=residuals,
                injected=injected,
            )
            sample = schedule.step(i, x0, sample, next(fresh) if schedule.is_renoised(i) else None)
    assert torch.equal(fast, x0)


def test_the_same_seed_repeats_bit_for_bit_in_any_batch(pipeline: StableNormal) -> None:
    photos = [load_photo(picture(seed=i)) for i in range(3)]
    together = pipeline.predict(photos, NormalOptions(seed=5))
    again = pipeline.predict(photos, NormalOptions(seed=5))
    alone = pipeline.predict(photos[1:2], NormalOptions(seed=5))[0]
    assert all(np.array_equal(a.normals, b.normals) for a, b in zip(together, again, strict=True))
    assert np.abs(together[1].normals - alone.normals).max() < 2e-3
    other = pipeline.predict(photos[:1], NormalOptions(seed=6))[0]
    assert not np.array_equal(together[0].normals, other.normals)


def test_a_generator_draws_every_noise(pipeline: StableNormal) -> None:
    torch.manual_seed(1)
    first = pipeline(picture(), generator=torch.Generator().manual_seed(3))
    torch.manual_seed(2)  # the published code re-noised from the global generator
    second = pipeline(picture(), generator=torch.Generator().manual_seed(3))
    assert np.array_equal(first.normals, second.normals)


def test_semantic_guidance_changes_the_refinement_and_can_be_left_out(pipeline: StableNormal) -> None:
    with_it, without = pipeline(picture()), pipeline(picture(), semantic=False)
    assert not np.array_equal(with_it.normals, without.normals)
    assert without.effective["semantic"] is False
    turbo = pipeline(picture(), turbo=True)
    assert turbo.effective["stages"] == 1 and turbo.effective["t_start"] == 0


def test_the_conditioning_scale_weighs_the_semantic_branch(pipeline: StableNormal) -> None:
    x = torch.from_numpy(picture().copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    plan = pipeline.plan(NormalOptions(conditioning_scale=0.0))
    draws = pipeline.draw((6, 8), plan, torch.Generator().manual_seed(0))
    assert torch.equal(
        pipeline.solve(x, draws, plan), pipeline.solve(x, draws, replace(plan, semantic=False))
    )


def test_one_step_of_the_prompt_free_line_needs_no_text_and_no_noise() -> None:
    parts = networks(2)
    bare = StableNormal(**parts, line="v1", default_resolution=0, default_processing_resolution=64)
    a, b = bare(picture(), seed=1), bare(picture(), seed=2)
    assert np.array_equal(a.normals, b.normals)
    with pytest.raises(InputError, match="draws no noise"):
        bare(picture(), ensemble=2)
    with pytest.raises(WeightsError, match="no text encoder"):
        StableNormal(**parts)(picture())


def test_an_ensemble_averages_and_says_how_far_apart_its_members_are(pipeline: StableNormal) -> None:
    members = [pipeline(picture(), seed=s, turbo=True).normals for s in range(3)]
    mean = np.sum(members, axis=0)
    mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
    expected = np.degrees([np.arccos(np.clip((m * mean).sum(-1), -1, 1)) for m in members]).mean(0)
    result = pipeline(picture(), turbo=True, ensemble=3)
    assert np.abs(result.normals - mean).max() < 1e-4
    assert np.abs(result.uncertainty - expected).max() < 0.05


def test_masks_come_from_the_person_the_alpha_or_a_model(pipeline: StableNormal) -> None:
    mask = np.zeros((48, 64), bool)
    mask[:, :20] = True
    given = pipeline(picture(), mask=mask)
    assert np.array_equal(given.valid, mask) and not given.normals[:, 20:].any()
    rgba = np.dstack([picture(), np.where(mask, 255, 60).astype(np.uint8)])
    assert np.array_equal(pipeline(rgba).valid, mask)

    class Brightness(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(100.0))

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [self.gain * (x.mean(1, keepdim=True))]

    opaque = np.dstack([np.where(mask, 255, 0)[..., None].repeat(3, 2), np.full(mask.shape, 255)])
    for drawn in (np.where(mask, 255, 0), mask.astype(np.int32), opaque.astype(np.uint8)):
        assert np.array_equal(imaging.check_mask(drawn, (48, 64)), mask), drawn.dtype

    matte = Matting(Brightness(), "object", "brightness", side=64)
    half = np.full((48, 64, 3), 250, np.uint8)
    half[:24] = 5
    found = pipeline(half, matting=matte).valid
    assert not found[:20].any() and found[28:].all()
    with pytest.raises(InputError, match="mask"):
        pipeline(picture(), mask=np.zeros((64, 48), bool))


def test_a_mask_file_counts_where_it_is_bright_unless_parts_of_it_are_transparent(tmp_path: Path) -> None:
    from vision3d.pipelines.stablenormal.verb import Masks

    left = np.zeros((48, 64), np.uint8)
    left[:, :20] = 255
    full = np.full_like(left, 255)
    for name, channels in (("bright", (left, left, left, full)), ("cut", (full, full, full, left))):
        Image.fromarray(np.dstack(channels)).save(tmp_path / f"{name}.png")
        mask = Masks(tmp_path / f"{name}.png")(Photo(picture()))
        assert np.array_equal(imaging.check_mask(mask, (48, 64)), left > 0), name


def test_outdoors_sky_and_vegetation_do_not_count() -> None:
    class Segmenter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.anchor = torch.nn.Parameter(torch.zeros(1))

        def forward(self, pixel_values: torch.Tensor):
            from types import SimpleNamespace

            logits = torch.full((1, 3, 20), -10.0)
            for query, label in enumerate((10, 8, 0)):
                logits[0, query, label] = 10.0
            masks = torch.full((1, 3, 3, 1), -10.0)
            for row in range(3):
                masks[0, row, row] = 10.0
            return SimpleNamespace(class_queries_logits=logits, masks_queries_logits=masks)

    counted = Matting(Segmenter(), "outdoor", "bands", side=64)(load_photo(np.zeros((60, 64, 3), np.uint8)))
    assert not counted[:36].any() and counted[44:].all()


def test_loading_one_folder_twice_shares_networks_and_encodes_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = StableNormal.from_pretrained(folder), StableNormal.from_pretrained(folder)
    assert a.vae is b.vae and a.unet is b.unet
    shared_latents().clear()
    encodes = []
    original = module.encode_moments
    monkeypatch.setattr(module, "encode_moments", lambda *x: encodes.append(1) or original(*x))
    a(picture(seed=9))
    b(picture(seed=9), turbo=True)
    assert len(encodes) == 1


def test_other_decoders_share_the_encoders_latents(folder: Path, tmp_path: Path) -> None:
    for name, part in (("same", "decoder.conv_out.bias"), ("other", "encoder.conv_out.bias")):
        shutil.copytree(folder, tmp_path / name)
        file = tmp_path / name / "vae" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        tensors[part] = tensors[part] + 1
        save_file(tensors, file)
    base, same, other = (
        sharing.identity(StableNormal.from_pretrained(p).vae, sharing.ENCODER)
        for p in (folder, tmp_path / "same", tmp_path / "other")
    )
    assert base == same != other


# Checkpoints --------------------------------------------------------------------------------------------


def released(place: Path, *, semantic_class: str | None = None, **index: object) -> Path:
    """A folder as the authors released theirs: fp16 files, dead tensors, no scalars of ours."""
    place.mkdir(parents=True)
    parts = networks(3)
    full = ControlNetModel(**{**SIZES, "conditioning_embedding_out_channels": (16, 16)})
    full.load_state_dict(parts["controlnet"].state_dict(), strict=False)
    parts["controlnet"] = full
    for name, network in parts.items():
        network.half().save_pretrained(place / name, variant="fp16")
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(MINI / "primedepth" / name, place / name)
    if semantic_class is not None:
        unet = networks(3)["unet"]
        branch = semantic_branch_of(unet, DINO.width, (16,))
        branch.half().save_pretrained(place / "dino_controlnet", variant="fp16")
        config = json.loads((place / "dino_controlnet" / "config.json").read_text())
        config["_class_name"] = semantic_class
        (place / "dino_controlnet" / "config.json").write_text(json.dumps(config))
    (place / "model_index.json").write_text(json.dumps({"_class_name": "YOSONormalsPipeline", **index}))
    return place


def test_released_folders_load_unmodified_with_their_dead_tensors_and_scalars(tmp_path: Path) -> None:
    place = released(tmp_path / "yoso-normal-v0-3", t_start=251, default_processing_resolution=64)
    held = load_file(place / "controlnet" / "diffusion_pytorch_model.fp16.safetensors")
    pipe = StableNormal.from_pretrained(place, turbo=True)
    assert any(name.startswith("controlnet_down_blocks.") for name in held)
    for name, value in pipe.controlnet.state_dict().items():
        assert torch.equal(value, held[name].float()), name
    assert pipe.config.t_start == 251 and pipe.config.line == "v0"
    assert pipe(picture(), resolution=0).effective["processing_resolution"] == 64


def test_a_refinement_takes_the_first_stage_beside_it_and_its_own_dino(tmp_path: Path) -> None:
    released(tmp_path / "yoso-normal-v0-3", default_denoising_steps=1, default_processing_resolution=64)
    place = released(tmp_path / "stable-normal-v0-1", semantic_class="SemanticControlNet", prompt="A map")
    with pytest.raises(WeightsError, match="dinov2-vitl14"):
        StableNormal.from_pretrained(place)
    without = StableNormal.from_pretrained(place, semantic="none")
    assert without.refines and without.dino_controlnet is None
    assert without.config.refine_prompt == "A map" and without.config.prompt == ""
    assert without.config.default_denoising_steps == 10
    assert without.config.default_processing_resolution == 768, "the first stage's is not that of both"
    assert without.refine_vae is without.vae  # equal by checksum, so the photograph is encoded once
    dino = tmp_path / "dino"
    from vision3d.pipelines.stablenormal.checkpoint import save_dino

    save_dino(Dino(DINO), dino)
    guided = StableNormal.from_pretrained(place, dino=dino)
    assert guided.dino_controlnet is not None
    assert not StableNormal.from_pretrained(place, turbo=True).refines


def test_the_line_is_that_of_the_folders_own_name_and_nulls_are_no_settings(tmp_path: Path) -> None:
    from vision3d.pipelines.stablenormal.checkpoint import line_of, load_folder

    origin = {"_name_or_path": "somebody/yoso-normal-v0-3"}
    assert line_of(Path("weights/yoso-normal-v1-8-1"), origin) == "v1"
    assert line_of(Path("stable-normal-v1-5/weights"), origin) == "v0"
    assert line_of(Path(), {}) == "v1"
    place = released(tmp_path / "yoso-normal-v0-3", default_processing_resolution=None, t_start=None)
    assert load_folder(place).scalars == {"line": "v0"}


def test_the_prompt_free_line_is_refined_in_one_call_if_asked(tmp_path: Path) -> None:
    options = NormalOptions(steps=1)
    options.check()
    with pytest.raises(InputError, match="steps 0"):
        NormalOptions(steps=0).check()


def test_an_unknown_semantic_branch_is_refused_by_its_tensors(tmp_path: Path) -> None:
    place = released(tmp_path / "stable-normal-v0-1", semantic_class="DinoControlNetModel")
    file = place / "dino_controlnet" / "diffusion_pytorch_model.fp16.safetensors"
    tensors = load_file(file)
    tensors["dino_controlnet_cond_embedding.mystery.weight"] = torch.zeros(3)
    save_file(tensors, file)
    with pytest.raises(WeightsError, match=r"mystery\.weight.*--semantic none"):
        load_semantic(place, {})
    tensors.pop("dino_controlnet_cond_embedding.mystery.weight")
    tensors["down_blocks.9.surprise"] = torch.zeros(3)
    save_file(tensors, file)
    with pytest.raises(WeightsError, match="surprise"):
        load_semantic(place, {})


def test_a_checkpoints_own_code_runs_only_when_trusted(tmp_path: Path) -> None:
    place = released(tmp_path / "stable-normal-v0-1", semantic_class="TheirBranch")
    source = """
from diffusers.models.controlnet import ControlNetModel  # where it was before it moved
from diffusers.models.modeling_utils import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
import torch

class TheirBranch(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, block_out_channels=(16, 16, 16, 16)):
        super().__init__()
        assert ControlNetModel.__name__ == "ControlNetModel"
        self.dino_controlnet_cond_embedding = torch.nn.Conv2d(16, 16, 1)

    def forward(self, sample, timestep, encoder_hidden_states, conditioning_scale, guess_mode, return_dict):
        return [sample] * 12, None
"""
    theirs = place / "dino_controlnet" / "branch.py"
    theirs.write_text(source)
    index = {"dino_controlnet": ["branch", "TheirBranch"]}
    save_file(
        {
            "dino_controlnet_cond_embedding.weight": torch.ones(16, 16, 1, 1),
            "dino_controlnet_cond_embedding.bias": torch.zeros(16),
        },
        place / "dino_controlnet" / "diffusion_pytorch_model.fp16.safetensors",
    )
    with pytest.raises(WeightsError, match="unknown layout"):
        load_semantic(place, index)
    branch = load_semantic(place, index, trust_remote_code=True)
    features = torch.rand(1, 16, 3, 3)
    tensors = branch.guide(branch.embed(features), torch.zeros(1, 2, 64))
    assert len(tensors) == 12 and torch.allclose(
        tensors[0], features.sum(1, keepdim=True).expand(-1, 16, -1, -1)
    )


def test_versions_and_lines_follow_the_repositories_names() -> None:
    expected = {
        "yoso-normal-v0-3": 0.3,
        "yoso-normal-v1-8-1": 1.81,
        "yoso-normal-v1-5-beta": 1.5,
        "other": None,
    }
    assert {name: parse_version(name) for name in expected} == pytest.approx(expected)
    for name, line in {
        "yoso-normal-v1-4": "v0",
        "yoso-normal-v1-5": "v1",
        "yoso-normal-v1-8-1": "v1",
    }.items():
        assert line_of(Path("x") / name / "files", {}) == line
    assert line_of(Path("yoso-normal-v0-3"), {"line": "v1"}) == "v1"


def test_saving_and_loading_keeps_every_tensor(pipeline: StableNormal, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "again")
    again = StableNormal.from_pretrained(tmp_path / "again")
    assert np.array_equal(again(picture()).normals, pipeline(picture()).normals)


def test_a_small_memory_budget_changes_no_number(folder: Path, pipeline: StableNormal) -> None:
    small = StableNormal.from_pretrained(folder, memory="1M")
    assert np.array_equal(small(picture()).normals, pipeline(picture()).normals)


def test_networks_that_take_turns_work_in_16_bits_on_photographs_tiles_and_frames(folder: Path) -> None:
    from vision3d.pipelines.stablenormal.video import Stabiliser

    whole, small = (
        StableNormal.from_pretrained(folder, torch_dtype="bf16", device="cpu", memory=memory)
        for memory in ("auto", "1M")
    )
    assert small.device == torch.device("cpu") and small.unet.dtype == torch.bfloat16
    for options in ({"steps": 2}, {"tile": 64, "turbo": True}):
        image = picture(48, 96, seed=21)
        result = small(image, **options)
        assert result.provenance.settings["dtype"] == "bfloat16"
        shared_latents().clear()
        assert np.array_equal(result.normals, whole(image, **options).normals)
    frame = Photo(picture(), "clip/000000", Path("clip.mp4"))
    steady = Stabiliser(small, NormalOptions(stabilise=0.5, turbo=True))
    assert np.array_equal(steady(frame).normals, whole(picture(), turbo=True).normals)


def test_pipelines_of_other_precision_share_the_autoencoder_only(
    folder: Path, pipeline: StableNormal
) -> None:
    before = pipeline(picture(seed=22)).normals
    short = StableNormal.from_pretrained(folder, torch_dtype="bf16", device="cpu")
    assert short.unet is not pipeline.unet
    assert short.vae is pipeline.vae and short.vae.dtype == torch.float32  # what makes normals is not rounded
    assert short(picture(seed=22)).provenance.settings["dtype"] == "bfloat16"
    shared_latents().clear()
    assert np.array_equal(pipeline(picture(seed=22)).normals, before)


# Tiles and video ----------------------------------------------------------------------------------------


def test_tiles_leave_no_seams_and_keep_the_large_shapes() -> None:
    from vision3d.geometry.tiling import Tiling
    from vision3d.pipelines.stablenormal.tiling import blend_normals

    y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 128), indexing="ij")
    ripple = 0.15 * torch.sin(40 * x)
    truth = F.normalize(torch.stack([x * 0.6 + ripple, y * 0.6, torch.ones_like(x)])[None], dim=1)
    whole = F.normalize(torch.stack([x * 0.6, y * 0.6, torch.ones_like(x)])[None], dim=1)
    tiling = Tiling(96, 128, 64)
    angle = torch.tensor(0.35)
    parts = []
    for i, (top, left, bottom, right) in enumerate(tiling.boxes):
        part = truth[:, :, top:bottom, left:right].clone()
        c, s = torch.cos(angle * (-1) ** i), torch.sin(angle * (-1) ** i)
        turned = torch.stack(
            [c * part[:, 0] + s * part[:, 2], part[:, 1], -s * part[:, 0] + c * part[:, 2]], 1
        )
        parts.append(turned)  # every tile misjudges the scene's orientation by 20 degrees
    result = blend_normals(parts, tiling, whole, smoothing=2.0)
    error = torch.rad2deg(torch.arccos((result * truth).sum(1).clamp(-1, 1)))
    plain = torch.rad2deg(torch.arccos((whole * truth).sum(1).clamp(-1, 1)))
    assert error.mean() < 0.6 * plain.mean() and error.mean() < 4
    jump = (result[..., 1:] - result[..., :-1]).norm(dim=1).mean((0, 1))
    smooth = (truth[..., 1:] - truth[..., :-1]).norm(dim=1).mean((0, 1))
    assert (jump / smooth.clamp_min(1e-3)).max() < 2  # no column where tiles meet stands out


def test_a_large_photograph_in_tiles_has_its_size_and_repeats(pipeline: StableNormal) -> None:
    a = pipeline(picture(96, 160), tile=64, steps=2)
    b = pipeline(picture(96, 160), tile=64, steps=2)
    assert a.normals.shape == (96, 160, 3) and np.array_equal(a.normals, b.normals)
    assert np.allclose(np.linalg.norm(a.normals, axis=-1), 1, atol=1e-5)


def test_tiles_take_the_view_of_the_whole_for_as_fine_as_it_was(pipeline: StableNormal) -> None:
    side = {"tile": 64, "turbo": True}
    native, named = (pipeline(picture(64, 96), processing_resolution=n, **side) for n in (0, 96))
    np.testing.assert_allclose(native.normals, named.normals, atol=1e-4)


def test_carrying_noise_and_latents_along_makes_a_video_flicker_less(pipeline: StableNormal) -> None:
    from vision3d.geometry.flow import flicker, motion
    from vision3d.pipelines.stablenormal.video import Stabiliser

    wide = picture(64, 160, seed=4)
    frames = [wide[:, i : i + 96] for i in range(0, 40, 8)]
    photos = [Photo(np.ascontiguousarray(f), f"clip/{i:06d}", Path("clip.mp4")) for i, f in enumerate(frames)]
    options = NormalOptions(turbo=True, processing_resolution=96)
    plain = [pipeline.predict([p], options)[0].normals for p in photos]
    steady = Stabiliser(pipeline, replace(options, stabilise=0.7))
    calm = [steady(p).normals for p in photos]
    motions = [motion(a, b) for a, b in pairwise(frames)]
    assert np.abs(motions[0].flow[20:40, 30:60] - [8, 0]).mean() < 0.5  # the camera pans by eight pixels
    assert flicker(calm, motions) < 0.8 * flicker(plain, motions)
    cut = Photo(picture(64, 96, seed=77), "clip/000009", Path("clip.mp4"))
    assert np.array_equal(steady(cut).normals, pipeline.predict([cut], options)[0].normals)
    streamed = list(pipeline.stream(photos[:2], replace(options, stabilise=0.7), batch_size=2))
    assert all(np.array_equal(a.normals, b) for a, b in zip(streamed, calm, strict=False))
    draws = [
        next(pipeline.stream(photos[:1], replace(options, stabilise=0.7), generator=source)).normals
        for source in (torch.Generator().manual_seed(0), torch.Generator().manual_seed(5))
    ]
    assert np.array_equal(draws[0], calm[0]) and not np.array_equal(draws[1], calm[0])


# The verb -----------------------------------------------------------------------------------------------


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_photograph_becomes_all_the_files_in_the_frame_asked_for(
    folder: Path, photo: Path, tmp_path: Path, capsys
) -> None:
    common = ("normals", photo, "--weights", folder, "--turbo", "--json")
    code, out, _ = run(*common, "--out", tmp_path / "cv", "--formats", "exr", "png8", "npz", capsys=capsys)
    assert code == 0 and json.loads(out)["done"] == 1
    place = tmp_path / "cv" / "a"
    assert {p.name for p in place.iterdir()} == {
        "normals.npy", "normals.png", "normals.exr", "normals8.png", "normals.npz", "preview.png", "result.json",
    }  # fmt: skip
    field = np.load(place / "normals.npy")
    from vision3d.io.normals import read_normals_png

    assert np.abs(read_normals_png(place / "normals.png") - field).max() < 1e-4
    assert np.abs(read_normals_png(place / "normals8.png") - field).max() < 2e-2
    run(*common, "--out", tmp_path / "gl", "--frame", "opengl", capsys=capsys)
    assert np.array_equal(np.load(tmp_path / "gl" / "a" / "normals.npy"), field * [1, -1, -1])
    np.savetxt(tmp_path / "pose.txt", [[0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]])
    pose = ("--frame", "world", "--pose", tmp_path / "pose.txt")
    run(*common, "--out", tmp_path / "world", *pose, capsys=capsys)
    world = np.load(tmp_path / "world" / "a" / "normals.npy")
    assert np.allclose(world, np.stack([-field[..., 1], field[..., 0], field[..., 2]], -1), atol=1e-6)
    record = json.loads((tmp_path / "world" / "a" / "result.json").read_text())
    assert record["frame"] == "world" and record["effective_settings"]["t_start"] == 0


def test_a_second_run_skips_and_another_frame_or_mask_does_not(
    folder: Path, photo: Path, tmp_path: Path, capsys
) -> None:
    Image.fromarray(np.full((48, 64), 255, np.uint8)).save(tmp_path / "mask.png")
    common = ("normals", photo, "--weights", folder, "--turbo", "--json", "--out", tmp_path / "out")
    for extra, status in (
        ((), "done"),
        ((), "skipped"),
        (("--frame", "opengl"), "done"),
        (("--mask", tmp_path / "mask.png"), "done"),
        (("--mask", tmp_path / "mask.png"), "skipped"),
    ):
        report = json.loads(run(*common, *extra, capsys=capsys)[1])
        assert report[status] == 1, (extra, report)


def test_each_bad_argument_is_one_clear_line(folder: Path, photo: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "pose.txt").write_text("1 2 3")
    foreign = tmp_path / "foreign"
    shutil.copytree(folder, foreign)
    config = json.loads((foreign / "unet" / "config.json").read_text())
    (foreign / "unet" / "config.json").write_text(json.dumps({**config, "block_out_channels": [32] * 4}))
    for extra, words in (
        (("--steps", "1"), "steps 1"),
        (("--turbo", "--steps", "4"), "turbo"),
        (("--frame", "world"), "--pose"),
        (("--frame", "world", "--pose", tmp_path / "pose.txt"), "pose.txt"),
        (("--tile", "8"), "tile 8"),
        (("--mask", tmp_path / "none"), "none"),
        (("--matting", "x"), "matting"),
        (("--weights", foreign), "unet"),
        (("--weights", photo), "folders"),
    ):
        chosen = () if "--weights" in extra else ("--weights", folder)
        out = tmp_path / "out"
        code, _, err = run("normals", photo, "--out", out, "--quiet", *chosen, *extra, capsys=capsys)
        lines = [line for line in err.splitlines() if line.strip()]
        assert code == 2 and len(lines) == 1 and words in lines[0], (extra, err)
        assert not out.exists() or not any(out.iterdir())


def test_image_branches_run_as_stock_encoders(pipeline: StableNormal) -> None:
    """Against diffusers' own UNet blocks: skips and middle are what its forward pass holds there."""
    parts = networks(5)
    unet, latent, context = parts["unet"].eval(), torch.randn(2, 4, 6, 8), torch.randn(1, 7, 64)
    branch = image_branch_of(unet)
    assert isinstance(branch, ControlNetVAEModel)
    stored: list[torch.Tensor] = []
    hooks = [unet.conv_in.register_forward_hook(lambda *a: stored.append(a[-1]))]
    hooks += [b.register_forward_hook(lambda *a: stored.extend(a[-1][1])) for b in unet.down_blocks]
    middle: list[torch.Tensor] = []
    hooks.append(unet.mid_block.register_forward_hook(lambda *a: middle.append(a[-1])))
    with torch.no_grad():
        unet(latent, 401, context.expand(2, -1, -1))
        skips, mid = branch(latent, 401, context, 0.5)
    for hook in hooks:
        hook.remove()
    assert len(skips) == len(stored) == 12
    assert all(torch.allclose(a, 0.5 * b, atol=1e-5) for a, b in zip(skips, stored, strict=True))
    assert torch.allclose(mid, 0.5 * middle[0], atol=1e-5)


def test_published_residual_semantics_are_diffusers_own() -> None:
    parts = networks(6)
    unet, latent, context = parts["unet"].eval(), torch.randn(1, 4, 6, 8), torch.randn(1, 7, 64)
    with torch.no_grad():
        skips, mid = parts["controlnet"](torch.randn(1, 4, 6, 8), 401, context)
        ours = denoise(unet, latent, 401, context, residuals=(skips, mid))
        theirs = unet(
            latent,
            401,
            context,
            down_block_additional_residuals=tuple(skips),
            mid_block_additional_residual=mid,
        ).sample
    assert torch.allclose(ours, theirs, atol=1e-5)
