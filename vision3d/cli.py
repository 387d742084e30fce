"""The command line: a table of verbs, each loaded when it is used.

A verb is a typed function whose signature is its options and whose docstring is its help. It returns an exit
code, nothing (success), or a :class:`Report`, which prints itself for people or, with ``--json``, for
programs. Neither ``vision3d --help`` nor ``vision3d VERB --help`` imports torch.

Exit codes: 0 done; 2 something given cannot be used, one line says what; 130 interrupted; verbs may have
others.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn, Protocol, runtime_checkable

from vision3d import __version__
from vision3d.errors import ResourceError, Vision3DError
from vision3d.memory import is_out_of_memory

VERBS: dict[str, tuple[str, str]] = {
    "depth": ("vision3d.pipelines.primedepth.verb:depth", "affine-invariant depth of photographs and videos"),
    "normals": ("vision3d.pipelines.stablenormal.verb:normals", "surface normals of photographs and videos"),
    "scene": ("vision3d.pipelines.scene.verb:scene", "metric, textured scenes of photographs"),
    "view": ("vision3d.viewer.verb:view", "look at results and 3D files, measure, export a page"),
    "match": ("vision3d.pipelines.sd_dino.verb:match", "corresponding points of different photographs"),
    "swap": ("vision3d.pipelines.sd_dino.verb:swap", "put one photograph's object in another's place"),
    "calibrate": (
        "vision3d.pipelines.dmcalib.verb:calibrate",
        "intrinsics and metric depth of photographs",
    ),
    "measure": (
        "vision3d.pipelines.dmcalib.measure:measure",
        "lengths, heights and planes in one photograph",
    ),
    "synthesize": (
        "vision3d.synthetic.verb:synthesize",
        "render scenes of the procedural world with ground truth",
    ),
    "train": ("vision3d.training.verb:train", "train a method on the procedural world"),
    "evaluate": ("vision3d.evaluation.verb:evaluate", "measure a method on a data set"),
    "weights": ("vision3d.weights.verb:weights", "find, pull, verify and convert the published weights"),
    "parity": (
        "vision3d.evaluation.parity.runner:parity",
        "compare with stored outputs of the published code",
    ),
}
"""Name → (module:function, one line of help)."""

GLOBAL_OPTIONS = {
    "--quiet": "no progress and no summary; warnings and errors only",
    "--json": "the summary as one JSON object on stdout, all else on stderr",
    "--debug": "tracebacks instead of one-line errors",
}
EXTRAS = {
    "open3d": "geometry",
    "viser": "viz",
    "ray": "ray",
    "tensorboard": "train",
    "pycolmap": "sfm",
}
"""Optional package → the extra of this package that installs it."""

EXIT_UNUSABLE, EXIT_INTERRUPTED = 2, 130


@runtime_checkable
class Report(Protocol):
    """What a verb may return; ``str()`` of it is shown to people."""

    @property
    def exit_code(self) -> int:
        """Of the process."""

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        argv: arguments without the program's name; by default the process's.
    """
    words, flags = _split_global_options(list(sys.argv[1:] if argv is None else argv))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold what its encoding does not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _dispatch(words, flags)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else (0 if stop.code is None else EXIT_UNUSABLE)
        if code and "--json" in flags:
            _print_json({"exit_code": code, "error": "the command line was not understood; see stderr"})
        _print(end="")  # help may be on its way still
        return code
    except KeyboardInterrupt as stop:
        if "--debug" in flags:
            raise
        text = str(stop) or "interrupted"
        # On a terminal, ^C was echoed on the line of the prompt or the bar.
        print("\n" * sys.stderr.isatty() + text, file=sys.stderr)
        if "--json" in flags:
            _print_json({"exit_code": EXIT_INTERRUPTED, "error": text})
        return EXIT_INTERRUPTED
    except Exception as error:
        if "--debug" in flags:
            raise
        if isinstance(error, BrokenPipeError) and {"-h", "--help"} & set(words):
            _print(end="")
            return 0
        if isinstance(error, ModuleNotFoundError):
            error = _missing_package(error)
        return _complain(error, "--json" in flags)


def _split_global_options(argv: list[str]) -> tuple[list[str], set[str]]:
    """Take the options that every verb has out of the arguments, wherever they stand before a ``--``."""
    end = argv.index("--") if "--" in argv else len(argv)
    flags = {word for word in argv[:end] if word in GLOBAL_OPTIONS}
    return [word for word in argv[:end] if word not in GLOBAL_OPTIONS] + argv[end:], flags


def _dispatch(words: list[str], flags: set[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        _print(overview())
        return 0 if words else EXIT_UNUSABLE
    if words[0] in ("-V", "--version", "version"):
        _print(f"vision3d {__version__}")
        return 0
    verb, *arguments = words
    if verb not in VERBS:
        _refuse_verb(verb)
    from vision3d.progress import set_debug, set_quiet

    set_quiet("--quiet" in flags)
    set_debug("--debug" in flags)
    as_json = "--json" in flags and not {"-h", "--help"} & set(arguments)
    # With --json, stdout belongs to the one JSON object, whatever the verb or a library prints.
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        result = _run(verb, arguments)
    code = result if isinstance(result, int) else result.exit_code if isinstance(result, Report) else 0
    if as_json:
        content = result.to_dict() if isinstance(result, Report) else {}
        _print_json({"command": verb, "exit_code": code, **content})
    elif isinstance(result, Report) and (code or "--quiet" not in flags):
        _print(result)
    return code


def _print(text: object = "", end: str = "\n") -> None:
    """Says something on stdout; when its reader (head, less) is gone, nothing more is said to it."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_json(content: dict[str, Any]) -> None:
    import json

    _print(json.dumps(content))


def _run(verb: str, arguments: list[str]) -> int | Report | None:
    """Parse a verb's arguments and call it."""
    function = _load(verb)
    import tyro

    return tyro.cli(function, prog=f"vision3d {verb}", args=arguments, description=_description(function))


def _load(verb: str) -> Callable[..., int | Report | None]:
    module, _, name = VERBS[verb][0].partition(":")
    function = getattr(import_module(module), name)
    # What a verb returns is no option of it, and its type may be one that is imported for checking only.
    function.__annotations__.pop("return", None)
    return function


def _description(function: Callable[..., Any]) -> str:
    """A verb's docstring up to its arguments, and the options that all verbs share."""
    import inspect

    text = (inspect.getdoc(function) or "").partition("\nArgs:")[0].strip()
    shared = "\n".join(f"{name.ljust(9)} {meaning}" for name, meaning in GLOBAL_OPTIONS.items())
    return f"{text}\n\nEvery verb also takes:\n{shared}"


def overview() -> str:
    """The help of the program as a whole."""
    width = max(map(len, (*VERBS, *GLOBAL_OPTIONS))) + 2
    lines = ["usage: vision3d VERB ... [--quiet] [--json] [--debug]", "", "verbs:"]
    lines += [f"  {name.ljust(width)}{meaning}" for name, (_, meaning) in VERBS.items()]
    lines += ["", "options of every verb:"]
    lines += [f"  {name.ljust(width)}{meaning}" for name, meaning in GLOBAL_OPTIONS.items()]
    lines += ["", "vision3d VERB --help explains a verb; vision3d --version prints the version."]
    return "\n".join(lines)


def _refuse_verb(verb: str) -> NoReturn:
    import difflib

    near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(VERBS)}"
    kind = "option" if verb.startswith("-") else "verb"
    print(f"vision3d: no {kind} is called {verb!r}; {hint}", file=sys.stderr)
    raise SystemExit(EXIT_UNUSABLE)


def _missing_package(error: ModuleNotFoundError) -> Exception:
    package = (error.name or "").partition(".")[0]
    if package in EXTRAS:
        return ResourceError(
            f"this needs the package {package}, which is not installed",
            f"pip install 'vision3d[{EXTRAS[package]}]'",
        )
    if package in ("", "vision3d"):
        return error
    return ResourceError(
        f"the package {package} is not installed", "install vision3d again with its dependencies"
    )


def _complain(error: Exception, as_json: bool) -> int:
    """One line for whoever can mend it; what is not in our error family is named as the defect that it is."""
    if isinstance(error, Vision3DError):
        text = str(error)
    elif is_out_of_memory(error):
        text = "out of memory; try smaller images (--help names the option) or a --memory budget"
    else:
        text = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}; --debug shows where"
    print(f"vision3d: {text}", file=sys.stderr)
    code = EXIT_UNUSABLE if isinstance(error, Vision3DError) or is_out_of_memory(error) else 1
    if as_json:
        details = (error.details if isinstance(error, Vision3DError) else None) or {}
        _print_json({"exit_code": code, "error": text, **details})
    return code


if __name__ == "__main__":
    sys.exit(main())
