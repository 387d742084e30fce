from __future__ import annotations

import json

import numpy as np
import pytest

from vision3d.backbone.tokeniser import Tokeniser, clean, tokenise
from vision3d.errors import InputError, WeightsError

CAT = [49406, 320, 1125, 539, 320, 2368, 49407]


def test_the_published_vocabulary_gives_the_published_ids():
    ids, lengths = tokenise(["", "a photo of a cat"])
    assert ids.shape == (2, 77)
    assert ids[0].tolist() == [49406, 49407] + [0] * 75
    assert ids[1].tolist() == CAT + [0] * 70
    assert lengths.tolist() == [2, 7]


def test_stable_diffusion_1_pads_with_the_end_token():
    ids, _ = tokenise("a photo of a cat", pad=49407)
    assert ids[0].tolist() == CAT + [49407] * 70
    own, _ = Tokeniser.clip()("a photo of a cat")
    assert own.tolist() == ids.tolist()


def test_ids_are_those_of_the_stored_fixtures(shared):
    for name, prompts, stored in (
        ("backbone/token_ids", "texts", "ids_pad0"),
        ("primedepth/text_encoder", "prompts", "tokens"),
    ):
        meta = json.loads((shared / "golden" / f"{name}.json").read_text())
        arrays = np.load(shared / "golden" / f"{name}.npz")
        ids, lengths = tokenise(meta[prompts], pad=0)
        np.testing.assert_array_equal(ids.numpy(), arrays[stored])
        if "length" in arrays:
            np.testing.assert_array_equal(lengths.numpy(), arrays["length"])


def test_the_shipped_merges_imply_the_vocabulary_file(shared):
    folder = shared / "data" / "clip_bpe"
    shipped = Tokeniser.clip().tokenizer
    assert shipped.get_vocab() == json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    texts = ["it's 42% of naïve café 日本語 😀 x²", "don't STOP  now!!", "<|endoftext|>", "&lt;b&gt;"]
    assert tokenise(texts)[0].equal(Tokeniser.from_folder(folder)(texts, 0)[0])


def test_a_text_that_is_too_long_keeps_75_tokens_and_the_end():
    ids, lengths = tokenise(["cat " * 200, " ".join(["cat"] * 75), " ".join(["cat"] * 74)])
    assert lengths.tolist() == [77, 77, 76]
    assert ids[0].tolist() == ids[1].tolist() == [49406] + [2368] * 75 + [49407]
    assert ids[2, -2:].tolist() == [49407, 0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("  A\tPhoto \n of ", "a photo of"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("&lt;b&gt; &quot;x&quot;", '<b> "x"'),
        ("“John’s” café", '"john\'s" café'),
        ("ﬁne ＡＢＣ　Ǉ ŉ", "fine abc lj 'n"),
        ("re\u0301sume\u0301 \ufeffbell\x07", "résumé bell"),
        ("it\x92s 5\x80", "it's 5€"),
    ],
)
def test_texts_are_cleaned_as_the_published_code_cleans_them(given, expected):
    # Expected values are those of ftfy 6.3 followed by OpenCLIP 3.3's own cleaning.
    assert clean(given) == expected


def test_a_small_vocabulary_loads_from_its_folder(tmp_path):
    vocabulary = {
        t: i for i, t in enumerate(["!", "a", "a</w>", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"])
    }
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "!"}))
    small = Tokeniser.from_folder(tmp_path)
    ids, lengths = small("AB a", length=6)
    assert ids.tolist() == [[5, 4, 2, 6, 0, 0]]
    assert lengths.tolist() == [4]
    assert small.identity != Tokeniser.clip().identity
    assert Tokeniser.wrap(small.tokenizer)("AB a", length=6)[0].equal(ids)


def test_what_cannot_be_tokenised_is_refused(tmp_path):
    with pytest.raises(InputError, match="a prompt is text"):
        tokenise([3])  # type: ignore[list-item]
    with pytest.raises(InputError, match="padding id 50000"):
        tokenise("x", pad=50000)
    with pytest.raises(WeightsError, match=r"no vocab\.json"):
        Tokeniser.from_folder(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(WeightsError, match="damaged tokeniser"):
        Tokeniser.from_folder(tmp_path)
