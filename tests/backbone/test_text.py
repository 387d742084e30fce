from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from vision3d.backbone.loading import load_weights
from vision3d.backbone.text import TextEncoder, encode, load_text_tower, to_open_clip, tokenise
from vision3d.errors import WeightsError

LDM_OPEN_CLIP, LDM_CLIP = "cond_stage_model.model.", "cond_stage_model.transformer.text_model."


def make_tower(layers=3, width=64, vocabulary=49408, activation="gelu", seed=0):
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64), hidden_act=activation, eos_token_id=vocabulary - 1,
        bos_token_id=vocabulary - 2,
    )  # fmt: skip
    tower = CLIPTextModel(config).eval().requires_grad_(False)
    for parameter in tower.parameters():
        parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return tower


@pytest.fixture(scope="module")
def tower():
    return make_tower()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VISION3D_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def by_the_formula(weights, ids, layers, activation):
    """A pre-norm causal transformer in plain matrix algebra, float64, from OpenCLIP's tensors."""
    w = {name: value.double() for name, value in weights.items()}

    def norm(x, name):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (var + 1e-5).sqrt() * w[name + ".weight"] + w[name + ".bias"]

    x = w["token_embedding.weight"][ids] + w["positional_embedding"]
    later = torch.ones(77, 77).triu(1).bool()
    for i in range(layers):
        p = f"transformer.resblocks.{i}."
        q, k, v = (norm(x, p + "ln_1") @ w[p + "attn.in_proj_weight"].T + w[p + "attn.in_proj_bias"]).chunk(
            3, -1
        )
        scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(later, -torch.inf)
        x = x + scores.softmax(-1) @ v @ w[p + "attn.out_proj.weight"].T + w[p + "attn.out_proj.bias"]
        h = norm(x, p + "ln_2") @ w[p + "mlp.c_fc.weight"].T + w[p + "mlp.c_fc.bias"]
        h = (
            h * torch.sigmoid(1.702 * h)
            if activation == "quick_gelu"
            else h * 0.5 * (1 + torch.erf(h / 2**0.5))
        )
        x = x + h @ w[p + "mlp.c_proj.weight"].T + w[p + "mlp.c_proj.bias"]
    return norm(x, "ln_final")


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize(("layer", "layers"), [("last", 3), ("penultimate", 2)])
def test_layers_are_those_of_the_formula(activation, layer, layers):
    tower = make_tower(activation=activation)
    ids, _ = tokenise(["a photo of a cat", ""])
    expected = by_the_formula(to_open_clip(tower), ids, layers, activation)
    torch.testing.assert_close(encode(tower, ids, layer).double(), expected, atol=2e-4, rtol=1e-4)


def write_layouts(tower, folder):
    """The same tower as a folder, in both LDM layouts, and as OpenCLIP's and CLIP's own files."""
    bare = {name.removeprefix("text_model."): value for name, value in tower.state_dict().items()}
    tower.save_pretrained(folder / "text_encoder")
    other = {
        "model.diffusion_model.out.2.bias": torch.zeros(4),
        "first_stage_model.quant_conv.bias": torch.zeros(8),
    }
    unused = {
        "logit_scale": torch.tensor(4.6),
        "text_projection": torch.zeros(64, 64),
        "attn_mask": torch.zeros(77, 77),
    }
    save_file(
        other | to_open_clip(tower, LDM_OPEN_CLIP) | {LDM_OPEN_CLIP + n: v for n, v in unused.items()},
        folder / "sd2.safetensors",
    )
    torch.save({"state_dict": other | to_open_clip(tower, LDM_OPEN_CLIP)}, folder / "sd2.ckpt")
    sd1 = {LDM_CLIP + n: v for n, v in bare.items()}
    sd1[LDM_CLIP + "embeddings.position_ids"] = torch.arange(77)[None]
    save_file(other | sd1, folder / "sd1.safetensors")
    save_file(
        to_open_clip(tower) | unused | {"visual.proj": torch.zeros(3)}, folder / "open_clip.safetensors"
    )
    clip = {"text_model." + n: v for n, v in bare.items()} | {"vision_model.x": torch.zeros(2)}
    save_file(
        clip | {"logit_scale": torch.tensor(1.0), "text_projection.weight": torch.zeros(2, 2)},
        folder / "clip.safetensors",
    )
    return [
        "text_encoder",
        "",
        "sd2.safetensors",
        "sd2.ckpt",
        "sd1.safetensors",
        "open_clip.safetensors",
        "clip.safetensors",
    ]


def test_every_layout_gives_the_same_tower(tower, tmp_path):
    ids, _ = tokenise(["a dog on a sofa"])
    expected = encode(tower, ids)
    checksums = set()
    for name in write_layouts(tower, tmp_path):
        loaded = load_text_tower(tmp_path / name, activation="gelu")
        assert not any(p.requires_grad for p in loaded.parameters())
        torch.testing.assert_close(encode(loaded, ids), expected, atol=0, rtol=0)
        checksums.add(loaded._weight_source.checksum())
    assert len(checksums) == 1


def test_the_activation_follows_the_layout(tower, tmp_path):
    write_layouts(tower, tmp_path)
    assert load_text_tower(tmp_path / "sd2.safetensors", load=False).config.hidden_act == "gelu"
    assert load_text_tower(tmp_path / "sd1.safetensors", load=False).config.hidden_act == "quick_gelu"
    assert load_text_tower(tmp_path, load=False).config.hidden_act == "gelu"  # from config.json


def test_transformers_reads_the_folder_as_we_do(tmp_path):
    make_tower(activation="quick_gelu").save_pretrained(tmp_path / "text_encoder")
    ids, _ = tokenise(["a dog on a sofa"], pad=49407)
    theirs = CLIPTextModel.from_pretrained(tmp_path / "text_encoder").eval()
    torch.testing.assert_close(
        encode(load_text_tower(tmp_path), ids), theirs(ids).last_hidden_state, atol=1e-6, rtol=0
    )


def test_conversion_to_open_clip_goes_both_ways(tower, tmp_path):
    there = to_open_clip(tower, LDM_OPEN_CLIP)
    assert there[LDM_OPEN_CLIP + "transformer.resblocks.0.attn.in_proj_weight"].shape == (192, 64)
    save_file(there, tmp_path / "ldm.safetensors")
    back = to_open_clip(load_text_tower(tmp_path / "ldm.safetensors"), LDM_OPEN_CLIP)
    assert back.keys() == there.keys()
    assert all(back[name].equal(there[name]) for name in there)


def test_the_stored_embeddings_are_reproduced(shared):
    from vision3d.evaluation.parity.runner import run_parity

    report = run_parity(shared / "golden" / "primedepth", names=("text_encoder",))
    assert report.exit_code == 0, str(report)


def test_a_tower_that_was_published_without_its_last_layer_says_so():
    config = CLIPTextConfig(
        hidden_size=1024, num_hidden_layers=23, intermediate_size=8, num_attention_heads=2, vocab_size=64,
        max_position_embeddings=4, eos_token_id=63, bos_token_id=62,
    )  # fmt: skip
    cut = CLIPTextModel(config).eval()
    ids = torch.tensor([[1, 2, 3, 63]])
    with pytest.raises(WeightsError, match="23 of 24 layers"):
        encode(cut, ids, "last")
    assert encode(cut, ids, "penultimate").equal(cut(ids).last_hidden_state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("cond_stage_model.model.ln_final.bias"), r"missing .*model\.ln_final\.bias"),
        (lambda t: t.pop("cond_stage_model.model.positional_embedding"), "lacks positional_embedding"),
        (
            lambda t: t.update({f"{LDM_OPEN_CLIP}transformer.resblocks.1.attn.in_proj_bias": torch.ones(64)}),
            r"resblocks\.1\.attn\.in_proj_bias is \(64,\) but \(192,\)",
        ),
        (lambda t: t.update({"cond_stage_model.model.extra.weight": torch.zeros(1)}), "unexpected .*extra"),
        (lambda t: t["cond_stage_model.model.ln_final.weight"].fill_(float("nan")), "NaN"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(tmp_path, change, message):
    tensors = to_open_clip(make_tower(vocabulary=300), LDM_OPEN_CLIP)
    change(tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=message):
        load_text_tower(tmp_path / "x.safetensors")


def test_a_file_without_a_text_tower_is_refused(tmp_path):
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, tmp_path / "unet.safetensors")
    with pytest.raises(WeightsError, match=r"no text tower in this file but model\.diffusion_model"):
        load_text_tower(tmp_path / "unet.safetensors")


def test_a_prompt_is_embedded_once(tower, home):
    loads = []

    def loader():
        loads.append(1)
        return tower

    first = TextEncoder(loader, pad=0, checksum="t")
    both = first.embed(["", "a cat"])
    assert both.shape == (2, 77, 64)
    assert both.dtype == torch.float32
    assert (first.loads, len(loads)) == (1, 1)
    torch.testing.assert_close(both, encode(tower, tokenise(["", "a cat"])[0]))
    assert len(list((home / "text").iterdir())) == 2

    second = TextEncoder(loader, pad=0, checksum="t")
    assert second.embed("a cat").equal(both[1:])
    assert second.loads == 0
    second.embed(["a cat", "a dog", "a dog"])
    assert second.loads == 1
    second.drop()
    second.embed("a fox")
    assert second.loads == 2


def test_whatever_changes_the_embedding_changes_its_key(tower, home):
    TextEncoder(lambda: tower, pad=0, checksum="t").embed("a cat")
    for other in (
        TextEncoder(lambda: tower, pad=49407, checksum="t"),
        TextEncoder(lambda: tower, pad=0, checksum="u"),
        TextEncoder(lambda: make_tower(), pad=0, checksum="t", dtype=torch.bfloat16),
    ):
        other.embed("a cat")
        assert other.loads == 1
    layers = TextEncoder(lambda: tower, pad=0, checksum="t")
    assert not layers.embed("a cat", "penultimate").equal(layers.embed("a cat", "last"))
    assert len(list((home / "text").iterdir())) == 5


def test_a_pretrained_tower_is_read_only_for_a_new_prompt(tower, tmp_path):
    tower.save_pretrained(tmp_path / "text_encoder")
    encoder = TextEncoder.from_pretrained(tmp_path)
    expected = encoder.embed("a cat")
    assert encoder.pad == 0
    assert encoder.loads == 1
    encoder.drop()
    assert all(p.is_meta for p in encoder._given.parameters())
    again = TextEncoder.from_pretrained(tmp_path)
    assert again.embed("a cat").equal(expected)
    assert again.loads == 0
    torch.testing.assert_close(encoder.embed("a dog"), TextEncoder(tower, pad=0, cache=False).embed("a dog"))


def test_modules_of_transformers_can_be_given(tower):
    from vision3d.backbone.tokeniser import Tokeniser

    ours = TextEncoder(tower, Tokeniser.clip().tokenizer, pad=0)
    assert ours.embed([""]).equal(TextEncoder(tower, pad=0, cache=False).embed(""))
    assert ours.loads == 0
    ours.drop()
    assert not any(p.is_meta for p in tower.parameters())


def test_a_damaged_cache_file_is_computed_again(tower, home):
    encoder = TextEncoder(tower, pad=0)
    expected = encoder.embed("a cat")
    (file,) = (home / "text").iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    assert encoder.embed("a cat").equal(expected)
    assert (
        TextEncoder(lambda: pytest.fail("not cached"), pad=0, checksum=encoder.checksum)
        .embed("a cat")
        .equal(expected)
    )


def test_a_cache_that_cannot_be_written_is_done_without(tower, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VISION3D_HOME", str(tmp_path / "file" / "home"))
    assert TextEncoder(tower, pad=0).embed("a cat").shape == (1, 77, 64)


def test_half_precision_weights_are_run_in_the_asked_precision(tower, tmp_path):
    save_file({n: v.half() for n, v in to_open_clip(tower).items()}, tmp_path / "half.safetensors")
    encoder = TextEncoder.from_pretrained(tmp_path / "half.safetensors")
    torch.testing.assert_close(
        encoder.embed("a cat"), TextEncoder(tower, pad=0).embed("a cat"), atol=0.05, rtol=0
    )
    assert encoder.tower.dtype == torch.float32
    stored = load_text_tower(tmp_path / "half.safetensors", load=False)
    assert TextEncoder(stored, pad=0)._precision() == torch.float16
    load_weights(stored)
    assert TextEncoder(stored, pad=0)._precision() == torch.float16
