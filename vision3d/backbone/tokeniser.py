"""CLIP's byte-pair tokeniser: the published vocabulary, or that of a diffusers ``tokenizer/`` folder.

The published vocabulary travels with the package as ``clip_merges.txt.gz`` (© 2021 OpenAI, MIT licence, whose
text stands at the head of that file): everything else of the vocabulary follows from its merges.

Texts are cleaned as the published CLIP code cleans them, so that a caption copied from a web page gives the
ids that the towers were trained with.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vision3d.errors import InputError, WeightsError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
"""Tokens per text that the towers take."""
MERGES_FILE = "clip_merges.txt.gz"

# Typographic variants that the published cleaning (ftfy) writes plainly.
_PLAIN = {ord(c): "'" for c in "ʼ‘’‚‛"} | {ord(c): '"' for c in "“”„‟"}
_LIGATURES = "ĲĳŉǄǅǆǇǈǉǊǋǌǱǲǳﬀﬁﬂﬃﬄﬅﬆ"
_WIDE = ["\u3000", *(chr(c) for c in range(0xFF01, 0xFFF0))]
_PLAIN |= {ord(c): unicodedata.normalize("NFKC", c) for c in (*_LIGATURES, *_WIDE)}
# Windows-1252 punctuation that was read as Latin-1 control characters.
_PLAIN |= {
    c: bytes([c]).decode("cp1252") for c in range(0x80, 0xA0) if c not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
}
_CONTROL = dict.fromkeys(
    [*range(9), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD)]
)


def clean(text: str) -> str:
    """A text as CLIP's tokeniser wants it.

    Straight quotes, no ligatures, full-width or control characters, composed accents; HTML entities resolved
    twice (captions are often escaped twice); white space collapsed; lower case. Wrongly decoded text
    (mojibake) is not repaired.
    """
    # ftfy resolves entities where there is no markup. Twice, since a replacement may hold a quote.
    plain = text if "<" in text else html.unescape(text)
    plain = plain.translate(_PLAIN).translate(_PLAIN).translate(_CONTROL)
    plain = html.unescape(html.unescape(unicodedata.normalize("NFC", plain)))
    return re.sub(r"\s+", " ", plain).strip().lower()


class Tokeniser:
    """Texts to ids: start, the text's byte pairs cut to fit, end, padding.

    Made by :meth:`clip`, :meth:`from_folder` or :meth:`wrap`. The vocabulary is built when the first text is
    tokenised.

    Attributes:
        identity: changes with the vocabulary; part of the key of cached embeddings.
    """

    def __init__(self, build: Callable[[], CLIPTokenizer], identity: str) -> None:
        self._build = build
        self._tokenizer: CLIPTokenizer | None = None
        self.identity = identity

    @classmethod
    def clip(cls) -> Tokeniser:
        """The published vocabulary of 49,408 entries, shared by CLIP and OpenCLIP."""
        return _published()

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokeniser:
        """The vocabulary of a ``tokenizer/`` folder (``vocab.json`` and ``merges.txt``).

        Raises:
            WeightsError: a file is missing or damaged.
        """
        folder = Path(folder).expanduser()
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise WeightsError(f"{folder}: no {name} in this folder", "give a CLIP tokenizer folder")
        digest = hashlib.sha256()
        try:
            texts = [(folder / name).read_text(encoding="utf-8") for name in ("vocab.json", "merges.txt")]
            vocabulary = json.loads(texts[0])
            pad = _padding_token(folder)
        except (OSError, ValueError) as error:
            raise WeightsError(f"{folder}: damaged tokeniser ({error})", "get it again") from error
        if not isinstance(vocabulary, dict) or START not in vocabulary or END not in vocabulary:
            raise WeightsError(
                f"{folder}: this vocabulary has no {START} and {END}", "give a CLIP tokenizer folder"
            )
        for text in texts:
            digest.update(text.encode())
        merges = _merges(texts[1])
        pad = pad if pad in vocabulary else END
        return cls(lambda: _clip_tokenizer(vocabulary, merges, pad), f"{digest.hexdigest()}|{pad}")

    @classmethod
    def wrap(cls, tokenizer: CLIPTokenizer | Tokeniser | str | Path | None) -> Tokeniser:
        """Whatever stands for a tokeniser: one of transformers', a folder, or None for the published one."""
        if isinstance(tokenizer, Tokeniser):
            return tokenizer
        if tokenizer is None:
            return cls.clip()
        if isinstance(tokenizer, (str, Path)):
            return cls.from_folder(tokenizer)
        backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        described = json.dumps([backend["vocab"], backend["merges"], tokenizer.pad_token_id], sort_keys=True)
        return cls(lambda: tokenizer, hashlib.sha256(described.encode()).hexdigest())

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The transformers tokeniser, for pipelines that keep one."""
        if self._tokenizer is None:
            self._tokenizer = self._build()
        return self._tokenizer

    def __call__(
        self, texts: str | Sequence[str], pad: int | None = None, length: int = LENGTH
    ) -> tuple[Tensor, Tensor]:
        """Token ids of texts.

        Args:
            texts: one or more; an over-long one keeps its first ``length - 2`` tokens.
            pad: id that fills up: 0 as OpenCLIP and SD 2 do, the end id (49407) as SD 1 does; None takes the
                vocabulary's own (SD 1's for the published one).
            length: ids per text.

        Returns:
            Ids, int64 ``(B, length)``, and how many of them are not padding (start and end included), int64
            ``(B,)``.

        Raises:
            InputError: a text is no string, ``pad`` is not in the vocabulary, or ``length`` is below 2.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"a prompt is text, not {texts!r}", "give a string or a list of strings")
        tokenizer = self.tokenizer
        pad = int(tokenizer.pad_token_id) if pad is None else pad
        if not 0 <= pad < len(tokenizer) or length < 2:
            raise InputError(f"padding id {pad} or length {length} does not fit this vocabulary")
        ids = torch.full((len(texts), length), pad, dtype=torch.int64)
        lengths = torch.zeros(len(texts), dtype=torch.int64)
        for row, text in enumerate(texts):
            pairs: list[int] = tokenizer(clean(text), add_special_tokens=False, verbose=False).input_ids
            kept = [tokenizer.bos_token_id, *pairs[: length - 2], tokenizer.eos_token_id]
            ids[row, : len(kept)] = torch.tensor(kept)
            lengths[row] = len(kept)
        return ids, lengths


def tokenise(
    texts: str | Sequence[str], pad: int = 0, length: int = LENGTH, tokeniser: Tokeniser | None = None
) -> tuple[Tensor, Tensor]:
    """Token ids ``(B, length)`` and lengths ``(B,)``, by the published vocabulary; see :class:`Tokeniser`."""
    return (tokeniser or Tokeniser.clip())(texts, pad, length)


@lru_cache(maxsize=1)
def _published() -> Tokeniser:
    packed = resources.files("vision3d.backbone").joinpath(MERGES_FILE).read_bytes()

    def build() -> CLIPTokenizer:
        merges = _merges(gzip.decompress(packed).decode())
        return _clip_tokenizer(_vocabulary(merges), merges, END)

    return Tokeniser(build, hashlib.sha256(packed).hexdigest())


def _merges(text: str) -> list[tuple[str, str]]:
    """Pairs in order of rank; whatever stands above the version line is for people."""
    _, marker, body = text.rpartition("#version:")
    lines = (body.partition("\n")[2] if marker else text).split("\n")
    pairs = (line.split() for line in lines)
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]


def _vocabulary(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The vocabulary that merges imply: bytes, bytes that end a word, merged pairs, start, end.

    Each byte is written as one visible character: printable Latin-1 as itself, the others shifted beyond 255.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [chr(c) for c in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    pairs = (first + second for first, second in merges)
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *pairs, START, END]
    return {token: index for index, token in enumerate(tokens)}


def _clip_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]], pad: str) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    # The annotation of transformers says strings; it hands the list on to a model that takes pairs.
    pairs: Any = merges
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=pairs,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=pad,
        model_max_length=LENGTH,
    )


def _padding_token(folder: Path) -> str:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            pad = json.loads((folder / name).read_text(encoding="utf-8")).get("pad_token")
            if pad is not None:
                return str(pad["content"] if isinstance(pad, dict) else pad)
    return END
