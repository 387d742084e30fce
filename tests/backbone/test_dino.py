from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from vision3d.backbone.dino import (
    MODELS,
    Dino,
    DinoConfig,
    Request,
    load_dino,
    log_bins,
    normalise,
)
from vision3d.errors import InputError, WeightsError

SMALL = DinoConfig(width=32, depth=3, heads=4, patch=14, grid=5, hidden=128)


def randomise(module):
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, centre, 0.3)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network():
    return randomise(Dino(SMALL))


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(2)
    return torch.rand(2, 3, 70, 70)


def transformers_model(kind):
    shared = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    if kind == "v1":
        config = ViTConfig(**shared, image_size=40, patch_size=8, intermediate_size=128, layer_norm_eps=1e-6)
        return ViTModel(config), 40
    config = {**shared, "image_size": 70, "patch_size": 14}
    if kind == "registers":
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**config)), 70
    return Dinov2Model(Dinov2Config(**config, use_swiglu_ffn=kind == "gated")), 70


@pytest.mark.parametrize("kind", ["v1", "v2", "registers", "gated"])
def test_tokens_equal_those_of_transformers_on_the_native_grid(tmp_path, images, kind):
    theirs, size = transformers_model(kind)
    randomise(theirs).save_pretrained(tmp_path)
    ours = load_dino(tmp_path)
    assert ours.config.heads == 4  # from config.json: 32 channels would mean one head
    pixels = normalise(images[..., :size, :size])
    expected = theirs(pixel_values=pixels, output_hidden_states=True)
    last, second = ours(pixels, [Request(norm=True), Request(layer=1)])
    torch.testing.assert_close(last.all, expected.last_hidden_state, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(second.all, expected.hidden_states[2], atol=2e-5, rtol=1e-5)
    assert ours.config.registers == (4 if kind == "registers" else 0)
    assert last.prefix.shape[1] == 1 + ours.config.registers


def test_models_with_registers_follow_the_size_rule_at_any_size(tmp_path):
    theirs, _ = transformers_model("registers")
    randomise(theirs).save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 42, 126)
    (ours,) = load_dino(tmp_path)(pixels)
    torch.testing.assert_close(ours.all, theirs(pixel_values=pixels).last_hidden_state, atol=2e-5, rtol=1e-5)


def test_other_models_follow_the_scale_rule_off_the_native_grid(network):
    """Samples at (j + 0.5) * M / (n + 0.1) - 0.5 by Keys' cubic with a = -0.75, written out."""
    side, grid = SMALL.grid, (3, 8)
    table = network.position_table(grid)[0, 1:].reshape(*grid, -1).double()
    image = network.pos_embed[0, 1:].reshape(side, side, -1).double()

    def weights(n):
        matrix = torch.zeros(n, side, dtype=torch.float64)
        for j in range(n):
            x = (j + 0.5) * side / (n + 0.1) - 0.5
            for tap in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                d, a = abs(x - tap), -0.75
                value = (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * (d**3 - 5 * d**2 + 8 * d - 4)
                matrix[j, min(max(tap, 0), side - 1)] += value
        return matrix

    expected = torch.einsum("ay,bx,yxc->abc", weights(3), weights(8), image)
    torch.testing.assert_close(table, expected, atol=1e-5, rtol=1e-5)
    by_size = F.interpolate(image.permute(2, 0, 1)[None], size=grid, mode="bicubic")[0].permute(1, 2, 0)
    assert (table - by_size).abs().max() > 0.01
    assert network.position_table((side, side)).equal(network.pos_embed)
    assert network.interpolation != Dino(DinoConfig(32, 1, 1, 14, 5, 8, registers=4)).interpolation


def test_the_stored_features_are_reproduced(shared):
    from vision3d.evaluation.parity.runner import run_parity

    for system, name in (("sd_dino", "dinov[12]_features"), ("stablenormal", "dinov2")):
        report = run_parity(shared / "golden" / system, names=(name,))
        assert report.cases
        assert report.exit_code == 0, str(report)


def test_facets_are_those_that_attention_uses(network, images):
    """From facets alone, attention of the block can be recomputed: heads are interleaved as documented."""
    pixels = normalise(images)
    q, k, v, before, after = network(
        pixels, [Request(1, "query"), Request(1, "key"), Request(1, "value"), Request(0), Request(1)]
    )
    heads = [t.all.unflatten(2, (-1, SMALL.heads)).permute(0, 3, 1, 2) for t in (q, k, v)]
    scores = heads[0] @ heads[1].transpose(-1, -2) / heads[0].shape[-1] ** 0.5
    attended = (scores.softmax(-1) @ heads[2]).permute(0, 2, 1, 3).flatten(2)
    block = network.blocks[1]
    x = (
        before.all
        + attended @ block.attn.proj.weight.T * block.ls1.gamma
        + block.attn.proj.bias * block.ls1.gamma
    )
    x = x + block.ls2(block.mlp(block.norm2(x)))
    torch.testing.assert_close(after.all, x, atol=1e-4, rtol=1e-4)


def test_a_pass_ends_at_the_last_block_that_is_needed(network, images):
    calls = []
    hooks = [
        block.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, block in enumerate(network.blocks)
    ]
    try:
        network.features(images, layer=1)
        assert calls == [0, 1]
        calls.clear()
        network.features(images, layer=1, facet="key")
        assert calls == [0]
    finally:
        for hook in hooks:
            hook.remove()


def test_a_pass_may_keep_some_patches_at_their_places(network, images):
    pixels = normalise(images)
    whole = network(pixels)[0]
    count = whole.patches.shape[1]
    order = torch.stack(
        [torch.randperm(count, generator=torch.Generator().manual_seed(i)) for i in range(len(images))]
    )
    mixed = network(pixels, keep=order)[0]
    expected = whole.patches.gather(1, order[..., None].expand(-1, -1, whole.patches.shape[-1]))
    torch.testing.assert_close(mixed.patches, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mixed.prefix, whole.prefix, atol=1e-5, rtol=1e-4)
    fewer = network(pixels, keep=order[:, :3])[0]
    assert fewer.patches.shape[1] == 3 and fewer.grid == whole.grid
    assert not torch.allclose(fewer.patches, expected[:, :3], atol=1e-3)


def test_batches_and_images_give_the_same(network, images):
    whole = network.features(images, layer=-2)
    split = network.features(images, layer=-2, batch_size=1)
    torch.testing.assert_close(split.patches, whole.patches, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(split.cls, whole.cls, atol=1e-5, rtol=1e-5)


def test_grids_and_strides(network, images):
    tokens = network.features(images[..., :50], stride=7)
    assert tokens.grid == (9, 6)
    assert tokens.patches.shape == (2, 54, 32)
    assert tokens.map.shape == (2, 32, 9, 6)
    assert tokens.map[0, :, 3, 2].equal(tokens.patches[0, 3 * 6 + 2])
    assert (tokens.stride, tokens.offset) == (7, 7.0)
    dense, _ = network.embed(normalise(images), stride=7)
    sparse, _ = network.embed(normalise(images))
    dense, sparse = (
        (x[:, 1:] - network.position_table(g)[:, 1:]).unflatten(1, g)
        for x, g in ((dense, (9, 9)), (sparse, (5, 5)))
    )
    torch.testing.assert_close(dense[:, ::2, ::2], sparse, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="no patch of 14 pixels"):
        network.features(images[..., :10])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(layer=3), "no block 3 in a network of 3"),
        (Request(facet="keys"), "no facet 'keys'"),  # type: ignore[arg-type]
        (Request(facet="key", norm=True), "final norm does not apply"),
    ],
)
def test_what_a_network_does_not_have_is_refused(network, images, request_, message):
    with pytest.raises(InputError, match=message):
        network(images, [request_])


def test_saliency_is_the_attention_of_the_class_token(network, images):
    q, k = network(normalise(images), [Request(facet="query"), Request(facet="key")])
    q, k = (t.all.unflatten(2, (-1, SMALL.heads)).permute(0, 3, 1, 2) for t in (q, k))
    attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)[:, [0, 2], 0, 1:].mean(1)
    expected = (attention - attention.amin(1, keepdim=True)) / (attention.amax(1) - attention.amin(1))[
        :, None
    ]
    saliency = network.saliency(images, heads=(0, 2))
    assert saliency.shape == (2, 5, 5)
    torch.testing.assert_close(saliency.flatten(1), expected, atol=1e-4, rtol=1e-4)


def test_log_bins_by_counting():
    torch.manual_seed(0)
    grid = torch.randn(1, 2, 5, 4)
    bins = log_bins(grid)
    assert bins.shape == (1, 34, 5, 4)

    def at(level, y, x):
        y, x = min(max(y, 0), 4), min(max(x, 0), 3)
        if level == 0:
            return grid[0, :, y, x]
        return grid[0, :, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].mean((1, 2))

    for y, x in ((0, 0), (2, 1), (4, 3)):
        offsets = [(0, dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        offsets += [(1, dy, dx) for dy in (-3, 0, 3) for dx in (-3, 0, 3) if (dy, dx) != (0, 0)]
        expected = torch.cat([at(level, y + dy, x + dx) for level, dy, dx in offsets])
        torch.testing.assert_close(bins[0, :, y, x], expected)


def test_hub_files_load_as_they_are(network, tmp_path, images):
    torch.save(network.state_dict(), tmp_path / "hub.pth")
    teacher = {f"module.backbone.{n}": v for n, v in network.state_dict().items()} | {
        "module.head.mlp.0.bias": torch.zeros(2)
    }
    torch.save({"student": {}, "teacher": teacher, "epoch": 3}, tmp_path / "training.pth")
    save_file(network.state_dict(), tmp_path / "hub.safetensors")
    expected = network.features(images)
    for name in ("hub.pth", "training.pth", "hub.safetensors"):
        loaded = load_dino(tmp_path / name, heads=4)
        assert loaded.config == SMALL
        assert loaded.features(images).all.equal(expected.all)
    assert (
        load_dino(tmp_path / "hub.pth", heads=4, dtype=torch.float16, load=True).pos_embed.dtype
        == torch.float16
    )


def test_weights_have_one_checksum_in_both_layouts(tmp_path, monkeypatch):
    monkeypatch.setenv("VISION3D_HOME", str(tmp_path / "home"))
    theirs, _ = transformers_model("v2")
    randomise(theirs).save_pretrained(tmp_path / "folder")
    ours = load_dino(tmp_path / "folder")
    torch.save(ours.state_dict(), tmp_path / "hub.pth")
    again = load_dino(tmp_path / "hub.pth", heads=4)
    assert again._weight_source.checksum() == ours._weight_source.checksum()


def hub_shapes(name):
    with torch.device("meta"):
        return Dino(MODELS[name]).state_dict()


@pytest.mark.parametrize("name", MODELS)
def test_published_networks_are_recognised_by_their_tensors(name):
    assert load_dino(hub_shapes(name), load=False).config.name == name


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("dinov2_vits14", 22_056_576),
        ("dinov2_vitb14", 86_580_480),
        ("dinov2_vitl14", 304_368_640),
        ("dinov2_vitg14", 1_136_480_768),
        ("dino_vits8", 21_670_272),
        ("dino_vitb16", 85_798_656),
    ],
)
def test_networks_have_the_published_number_of_parameters(name, published):
    assert sum(v.numel() for v in hub_shapes(name).values()) == published


@pytest.mark.parametrize("kind", ["v1", "v2", "registers", "gated"])
def test_names_of_transformers_in_memory_are_known_too(kind, images):
    """Its modules are named otherwise than its files."""
    theirs, size = transformers_model(kind)
    pixels = normalise(images[..., :size, :size])
    (ours,) = load_dino(randomise(theirs).state_dict(), heads=4)(pixels)
    expected = theirs(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(ours.all, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.1.attn.proj.bias"), r"missing blocks\.1\.attn\.proj\.bias"),
        (lambda t: t.update({"head.weight": torch.zeros(10, 32)}), r"unexpected head\.weight"),
        (
            lambda t: t.update({"blocks.0.norm2.weight": torch.zeros(7)}),
            r"blocks\.0\.norm2\.weight is \(7,\)",
        ),
        (lambda t: t.update(pos_embed=torch.zeros(1, 12, 32)), "position table of 11 patches"),
        (lambda t: t["norm.bias"].fill_(float("inf")), r"norm\.bias holds NaN or infinite"),
        (lambda t: t.pop("cls_token"), "not a DINO network"),
        (lambda t: t.update(pos_embed=torch.zeros(26)), r"not a DINO network \(no pos_embed\)"),
        (lambda t: t.update({"classifier.bias": torch.zeros(9)}), r"unexpected classifier\.bias"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, change, message):
    tensors = randomise(Dino(SMALL)).state_dict()
    change(tensors)
    torch.save(tensors, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=message):
        load_dino(tmp_path / "x.pth", heads=4)


def test_another_network_than_the_task_needs_is_named(tmp_path):
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, tmp_path / "sd.safetensors")
    with pytest.raises(WeightsError, match=r"not a DINO network .* but model\.diffusion_model"):
        load_dino(tmp_path / "sd.safetensors")
    with pytest.raises(WeightsError, match="this is dinov2_vits14, the task needs dinov2_vitb14"):
        load_dino(hub_shapes("dinov2_vits14"), model="dinov2_vitb14", load=False)
    with pytest.raises(InputError, match="no DINO network 'dinov9'"):
        load_dino({}, model="dinov9")


def test_normalised_pixels_have_the_published_statistics():
    grey = normalise(torch.full((1, 3, 2, 2), 0.5))
    np.testing.assert_allclose(grey[0, :, 0, 0], [0.0655022, 0.1964286, 0.4177778], atol=1e-6)
