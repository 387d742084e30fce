"""What mkdocs runs while it builds: the help of every verb is written into the page that asks for it."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

MARK = "<!-- help of every verb -->"
SUBCOMMANDS = {"weights": ("list", "pull", "verify", "where", "convert", "remove")}


def help_text(*words: str) -> str:
    """What ``vision3d WORDS --help`` prints, 100 characters wide."""
    from vision3d.cli import main

    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR", "TERM")}
    os.environ.update(COLUMNS="100", NO_COLOR="1", TERM="dumb")
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            code = main([*words, "--help"])
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
    if code:
        raise RuntimeError(f"vision3d {' '.join(words)} --help ends with {code}")
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def every_verb() -> str:
    """A section for each verb, and for each of its commands if it has any."""
    from vision3d.cli import VERBS

    parts = []
    for verb, (_, meaning) in VERBS.items():
        parts += [f"## {verb}", "", f"{meaning[0].upper()}{meaning[1:]}.", ""]
        for words in ([verb], *([verb, command] for command in SUBCOMMANDS.get(verb, ()))):
            if len(words) > 1:
                parts += [f"### {' '.join(words)}", ""]
            parts += ["```text", help_text(*words), "```", ""]
    return "\n".join(parts)


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Called by mkdocs for every page."""
    return markdown.replace(MARK, every_verb()) if MARK in markdown else markdown
