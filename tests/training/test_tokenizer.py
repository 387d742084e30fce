from __future__ import annotations

import pytest

from vision3d.training.tokenizer import train_clip_vocabulary, write_clip_tokenizer

CAPTIONS = [
    f"a {colour} {thing} on a {floor} floor"
    for colour in ("red", "blue", "dark green")
    for thing in ("chair", "wooden table", "car", "fox")
    for floor in ("tiled", "wooden")
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    write_clip_tokenizer(folder, *train_clip_vocabulary(CAPTIONS, merges=200))
    return CLIPTokenizer.from_pretrained(folder)


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids


def test_words_of_the_captions_are_single_tokens(tokenizer):
    ids = encode(tokenizer, "a red chair on a tiled floor")
    length = ids.index(tokenizer.eos_token_id)
    assert length == 1 + 7
    assert tokenizer.decode(ids[1:length]).strip() == "a red chair on a tiled floor"


def test_layout_is_that_of_stable_diffusion_2(tokenizer):
    ids = encode(tokenizer, "")
    assert len(ids) == 77
    assert ids[0] == tokenizer.bos_token_id
    assert ids[1] == tokenizer.eos_token_id == len(tokenizer) - 1
    assert set(ids[2:]) == {0}
    assert tokenizer.pad_token == "!"
    long = encode(tokenizer, "chair " * 100)
    assert len(long) == 77
    assert long[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("text", ["zebra xylophone", "Ünïcode 雪 😀", "it's 42%!"])
def test_any_text_can_be_encoded(tokenizer, text):
    ids = encode(tokenizer, text)
    inner = ids[1 : ids.index(tokenizer.eos_token_id)]
    assert tokenizer.decode(inner).replace(" ", "") == text.lower().replace(" ", "")


def test_the_vocabulary_is_the_same_every_time():
    assert train_clip_vocabulary(CAPTIONS, 100) == train_clip_vocabulary(list(CAPTIONS), 100)


def test_tokens_are_those_of_the_published_tokeniser_given_its_files(shared, tmp_path):
    """Our writer and transformers read the published vocabulary as the published tokeniser does."""
    import json

    from transformers import CLIPTokenizer

    source = shared / "data" / "clip_bpe"
    vocabulary = json.loads((source / "vocab.json").read_text(encoding="utf-8"))
    merges = (source / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    write_clip_tokenizer(tmp_path / "tokenizer", vocabulary, merges)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert encode(tokenizer, "a photo of a cat")[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert encode(tokenizer, "a photo of a cat")[7:] == [0] * 70
