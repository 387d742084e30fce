"""The guide builds without a warning, and every block of code in it runs.

Blocks of one page share a folder and, in Python, their variables. A block's title is part of the page, and says what
is different about it:

* ``needs the network``, ``without a network``: verbs run offline and have to say what to do by hand; what installs
  something is not run, but has to name what exists.
* ``refused``: the verb has to end with exit code 2 and one line.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vision3d import cli

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TITLES = {"", "needs the network", "without a network", "refused"}
FENCE = re.compile(
    r"^```(?P<language>[a-z]*)(?: title=\"(?P<title>[^\"]*)\")?\n(?P<code>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A piece of code on a page.

    Attributes:
        page: its file.
        line: number of its first line.
    """

    page: Path
    line: int
    language: str
    title: str
    code: str


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, match.start()) + 2,
            match["language"],
            match["title"] or "",
            match["code"],
        )
        for match in FENCE.finditer(text)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what the pages presuppose, and nothing pulled."""
    (tmp_path / "photos").mkdir()
    for i, name in enumerate(("kitchen.jpg", "photos/1.jpg", "photos/2.jpg")):
        coarse = np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 64), Image.Resampling.BICUBIC).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VISION3D_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def run_python(block: Block, names: dict[str, Any]) -> None:
    # The line numbers of a traceback are those of the page.
    code = "\n" * (block.line - 1) + block.code
    exec(compile(code, str(block.page), "exec"), names)


def run_shell(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    for line in filter(None, block.code.splitlines()):
        words = shlex.split(line)
        if words[0] == "vision3d":
            run_verb(block, line, words[1:], capsys)
        elif block.title == "needs the network":
            check_installing(words)
        else:
            done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, f"{line}: {done.stderr}"


def run_verb(block: Block, line: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    expanded = [name for word in words for name in (sorted(glob.glob(word)) or [word])]  # noqa: PTH207
    capsys.readouterr()
    code = cli.main(expanded)
    shown = capsys.readouterr()
    if block.title == "":
        assert code == 0, f"{line}: {shown.err}"
        return
    assert code == 2 and "Traceback" not in shown.err, f"{line}: {shown}"
    # One complaint; or, where several things were asked for, one for each in the summary.
    complaints = [text for text in shown.err.splitlines() if text.startswith("vision3d: ")]
    complaints = complaints or [text for text in shown.out.splitlines() if " failed: " in text]
    assert complaints, f"{line}: {shown}"
    if block.title == "refused":
        assert len(complaints) == 1
    else:
        assert all("by hand" in text and "--from" in text for text in complaints), complaints


def check_installing(words: list[str]) -> None:
    """A command that is not run: what it names exists."""
    project = (ROOT / "pyproject.toml").read_text()
    if words[:2] == ["pip", "install"]:
        extras = re.search(r"vision3d\[([a-z,]+)\]", words[2])
        assert extras and all(re.search(rf"^{name} = \[", project, re.M) for name in extras[1].split(","))
        assert "git+https://github.com/vision3d/vision3d" in words[2]
    elif words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True, timeout=60)
    else:
        assert words[0] in ("git", "cd"), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_code_runs(page: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": f"docs_{page.stem}"}
    for block in blocks_of(page):
        assert block.title in TITLES, f"{page.name}:{block.line}: {block.title!r}"
        if block.language == "python":
            assert block.title == ""
            run_python(block, names)
        elif block.language == "sh":
            run_shell(block, capsys)
        else:
            pytest.fail(f"{page.name}:{block.line}: a block in {block.language or 'no language'}")


def test_no_block_escapes_the_tests() -> None:
    """Indented fences, fences of other kinds and blocks by indentation alone would not be found."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("```") == 2 * len(blocks_of(page)), page
        assert "~~~" not in text
        outside = FENCE.sub("", text)
        for line in outside.splitlines():
            allowed = line.lstrip().startswith(("options:", "members:", "show_"))
            assert not line.startswith("    ") or allowed, f"{page.name}: {line}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="pip install 'vision3d[docs]'")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"},
    )
    assert done.returncode == 0, done.stderr
    return out


def test_the_guide_builds_strictly_with_the_help_of_every_verb(site: Path) -> None:
    page = (site / "cli" / "index.html").read_text(encoding="utf-8")
    for verb in cli.VERBS:
        assert f'id="{verb}"' in page and f"usage: vision3d {verb}" in page
    assert "--accept-license" in page and "--memory" in page
    assert "<!-- help" not in page


def test_the_reference_has_signatures_and_docstrings(site: Path) -> None:
    page = (site / "python" / "index.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", page)
    for words in (
        "from_pretrained",
        "Affine-invariant inverse depth, and optionally ADE20K segmentation",
        "WeightsError",
    ):
        assert words in text
    assert "convert_pose" in text and "Camera-to-world matrices (..., 4, 4)" in text


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", text):
            if 'rel="canonical"' not in tag:
                assert not re.search(r"(?:src|href)=\"?https?:", tag), f"{page.name}: {tag}"
