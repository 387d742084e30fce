"""A small vocabulary for CLIP's tokeniser, learned from captions.

The result is a folder that ``transformers.CLIPTokenizer`` loads: byte-level BPE with CLIP's ``</w>`` word
ends, start and end tokens last, and padding with "!" (id 0) as Stable Diffusion 2 does. Every byte is in the
vocabulary, so any text can be encoded; words of the captions become one token each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from vision3d.io.files import staged_folder

START, END, PAD = "<|startoftext|>", "<|endoftext|>", "!"
MAX_LENGTH = 77
# CLIP's word pattern: contractions, runs of letters, single digits, runs of anything else.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train_clip_vocabulary(captions: Iterable[str], merges: int = 1024) -> tuple[dict[str, int], list[str]]:
    """Learn a byte-pair vocabulary.

    Args:
        captions: texts; lower-cased as CLIP's tokeniser does.
        merges: most merges to learn; fewer when the captions have fewer pairs.

    Returns:
        Token → id in CLIP's order (bytes, bytes that end a word, merges, start, end), and the merges in order
        of rank as ``"a b"``.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_clip_byte_order)
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(bytes_) + merges,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=bytes_,
        end_of_word_suffix="</w>",
    )
    learner.train_from_iterator(captions, trainer)
    learned = [
        pair if isinstance(pair, str) else " ".join(pair)
        for pair in json.loads(learner.to_str())["model"]["merges"]
    ][:merges]
    tokens = [*bytes_, *(b + "</w>" for b in bytes_), *(m.replace(" ", "") for m in learned), START, END]
    # Two merges can spell the same token; its first rank names it.
    vocabulary: dict[str, int] = {}
    for token in tokens:
        vocabulary.setdefault(token, len(vocabulary))
    return vocabulary, learned


def write_clip_tokenizer(folder: Path, vocabulary: dict[str, int], merges: list[str]) -> None:
    """Write ``vocab.json``, ``merges.txt`` and ``tokenizer_config.json``. Raises OutputError."""
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": PAD,
        "do_lower_case": True,
        "padding_side": "right",
    }
    with staged_folder(folder, last="tokenizer_config.json") as staging:
        (staging / "vocab.json").write_text(
            json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (staging / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
        (staging / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _clip_byte_order(character: str) -> tuple[int, int]:
    """Printable bytes first, "!" at their head, then those that byte-level BPE shifts beyond 255."""
    code = ord(character)
    return (int(code > 255), code)
