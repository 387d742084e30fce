"""``vision3d weights``: what there is, what is here, and how it gets here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vision3d.errors import InputError, Vision3DError, WeightsError
from vision3d.paths import as_path
from vision3d.progress import say

Names = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME...")]


@dataclass
class List:
    """Show the released weights: what for, how large, which licence, and which are here.

    Args:
        task: only those for this task, with what it takes in all; depth, normals, calibrate, match or swap (sim2real
            and dream are for methods that this version does not have).
        pulled: only those that are here.
    """

    task: str | None = None
    pulled: bool = False


@dataclass
class Pull:
    """Download weights and all that they need, verify them, and show their licences.

    An interrupted download goes on where it stopped. HF_HUB_OFFLINE, HF_HOME and HF_ENDPOINT are honoured;
    records and directly linked files go to VISION3D_HOME.

    Args:
        names: what to pull, as `vision3d weights list` calls it.
        from_: files, or a folder, that you downloaded by hand.
        accept_license: agree to the licences, where there is no terminal to ask on.
        only: not what they need besides.
        again: download even what is here.
    """

    names: Names
    from_: Annotated[tuple[Path, ...], tyro.conf.arg(name="from", metavar="PATH...")] = ()
    accept_license: bool = False
    only: bool = False
    again: bool = False


@dataclass
class Verify:
    """Hash pulled weights again and look at their tensors; or tell what weight files are.

    Args:
        names: pulled weights (all of them by default), or weight files.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME|FILE...]")] = ()


@dataclass
class Where:
    """Print what a loader is given for pulled weights; without names, the folder of all weights.

    Args:
        names: pulled weights.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME...]")] = ()


@dataclass
class Convert:
    """Turn a single-file checkpoint into a diffusers folder of safetensors, or such a folder back into one file.

    Knows Stable Diffusion 1.x and 2.x (LDM layout) and PrimeDepth.

    Args:
        source: single file, folder, or the name of pulled weights.
        out: folder to make from a file; .safetensors or .ckpt to make from a folder.
        prediction: what the UNet predicts, which a single file does not say; by default the noise, or for
            Stable Diffusion 2.x files the velocity if "768" is in their name.
        rest: also keep what the folder layout has no place for, so that the way back loses nothing.
    """

    source: Annotated[str, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.Positional]
    prediction: Literal["epsilon", "v_prediction", "sample"] | None = None
    rest: bool = True


@dataclass
class Remove:
    """Remove pulled weights.

    Args:
        names: what to remove.
        keep_cache: leave the files in the Hugging Face cache, where other programs may use them.
    """

    names: Names
    keep_cache: bool = False


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Pull, tyro.conf.subcommand("pull")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Where, tyro.conf.subcommand("where")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Remove, tyro.conf.subcommand("remove")]
)


@dataclass
class WeightsReport:
    """What a command did; prints itself for people or programs."""

    text: str
    content: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return self.content

    def __str__(self) -> str:
        return self.text


def weights(command: Annotated[Command, tyro.conf.arg(name="")]) -> WeightsReport:
    """Find, pull, verify, convert and remove the published weights."""
    run: dict[type, Callable[[Any], WeightsReport]] = {
        List: _list,
        Pull: _pull,
        Verify: _verify,
        Where: _where,
        Convert: _convert,
        Remove: _remove,
    }
    return run[type(command)](command)


def _list(command: List) -> WeightsReport:
    from vision3d.weights import registry
    from vision3d.weights.download import human_bytes
    from vision3d.weights.manifest import manifest

    known = manifest()
    if command.task is not None and command.task not in known.tasks:
        raise InputError(f"no task {command.task!r}", f"choose one of {', '.join(known.tasks)}")
    chosen = [c for c in known.checkpoints.values() if command.task in (None, *c.tasks)]
    states = registry.states([c.name for c in chosen])
    if command.pulled:
        chosen = [c for c in chosen if states[c.name]]
    rows, content = [("NAME", "FOR", "SIZE", "LICENCE", "STATE")], []
    for checkpoint in chosen:
        record = registry.Record.read(checkpoint.name)
        size = record.size if record is not None else checkpoint.size
        state = states[checkpoint.name] or (
            "by hand" if checkpoint.kind == "hand" else "gated" if checkpoint.gated else ""
        )
        rows.append(
            (
                checkpoint.name,
                ", ".join(checkpoint.tasks),
                human_bytes(size),
                checkpoint.licence.name,
                state or "-",
            )
        )
        content.append({**_plain(checkpoint), "size": size, "state": states[checkpoint.name]})
    lines = _table(rows)
    if command.task is not None:
        lines += ["", *_advice(command.task, chosen, states)]
    elif not chosen:
        lines = ["no weights are here; `vision3d weights list` shows what can be pulled"]
    return WeightsReport("\n".join(lines), {"weights": content})


def _plain(checkpoint: Any) -> dict[str, Any]:
    """A manifest entry as JSON."""
    return asdict(checkpoint)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _advice(task: str, chosen: Sequence[Any], states: dict[str, str]) -> list[str]:
    """What a task takes in all, for each method that has official weights for it."""
    from vision3d.weights.download import human_bytes
    from vision3d.weights.manifest import manifest

    known, lines = manifest(), []
    for checkpoint in chosen:
        if not checkpoint.official:
            continue
        parts = known.with_needs(checkpoint.name)
        sizes = [part.size for part in parts]
        total = sum(size or 0 for size in sizes)
        amount = "size not published" if not total else human_bytes(total)
        if total and None in sizes:
            amount = f"more than {amount}"
        licences = " + ".join(dict.fromkeys(part.licence.name for part in parts))
        here = "" if states.get(checkpoint.name) != "pulled" else ", here"
        others = f"with {', '.join(p.name for p in parts[1:])}; " if parts[1:] else ""
        lines.append(
            f"{task} with {checkpoint.official}: vision3d weights pull {checkpoint.name} "
            f"({others}{amount}; {licences}{here})"
        )
        if checkpoint.note:
            lines.append(f"  {checkpoint.note}")
    return lines


def _pull(command: Pull) -> WeightsReport:
    from vision3d.weights import registry
    from vision3d.weights.manifest import manifest

    _need_names(command.names)
    if command.from_:
        if len(command.names) != 1:
            raise InputError("--from goes with one name", "pull them one after the other")
        return _summary([registry.take(command.names[0], command.from_)])
    known = manifest()
    wanted: dict[str, None] = {}
    for name in command.names:
        parts = [known[name]] if command.only else known.with_needs(name)
        wanted |= dict.fromkeys(part.name for part in parts)
    consent = registry.Consent.of_terminal(command.accept_license)
    outcomes = []
    for name in wanted:
        try:
            outcomes.append(registry.pull(name, consent=consent, again=command.again))
        except Vision3DError as error:
            if len(wanted) == 1:
                raise
            outcomes.append(registry.Outcome(name, "failed", str(error)))
        except KeyboardInterrupt:
            done = sum(outcome.state != "failed" for outcome in outcomes)
            raise KeyboardInterrupt(
                f"interrupted while pulling {name}; {done} of {len(wanted)} are here, "
                "and the same command goes on from there"
            ) from None
        else:
            say(f"{name}: {outcomes[-1].state}")
    return _summary(outcomes)


def _need_names(names: Sequence[str]) -> None:
    if not names:
        raise InputError("no names given", "`vision3d weights list` shows them")


def _summary(outcomes: Sequence[Any]) -> WeightsReport:
    from vision3d.weights.download import human_bytes

    lines = []
    for outcome in outcomes:
        size = f", {human_bytes(outcome.size)}" if outcome.size and outcome.state != "removed" else ""
        place = f" in {outcome.path}" if outcome.path and outcome.state != "removed" else ""
        message = f": {outcome.message}" if outcome.message else ""
        lines.append(f"{outcome.name} {outcome.state}{size}{place}{message}")
    bad = any(outcome.state in ("failed", "incomplete") for outcome in outcomes)
    return WeightsReport("\n".join(lines), {"weights": [vars(o) for o in outcomes]}, 2 if bad else 0)


def _verify(command: Verify) -> WeightsReport:
    from vision3d.weights import registry
    from vision3d.weights.manifest import manifest

    known = manifest()
    names = command.names or tuple(name for name, state in registry.states().items() if state)
    if not names:
        return WeightsReport("no weights are here", {"weights": []})
    outcomes = []
    for name in names:
        try:
            if name in known:
                outcomes.append(registry.verify(name))
            else:
                outcomes.append(_recognise(as_path(name)))
        except WeightsError as error:
            if len(names) == 1:
                raise
            outcomes.append(registry.Outcome(name, "failed", str(error)))
    return _summary(outcomes)


def _recognise(path: Path) -> Any:
    from vision3d.io.files import sha256_file
    from vision3d.weights.layouts import describe
    from vision3d.weights.registry import Outcome

    if not path.is_file():
        raise WeightsError(f"{path}: neither weights of the list nor a file", "`vision3d weights list`")
    return Outcome(
        path.name,
        "recognised",
        f"{describe(path)}, SHA-256 {sha256_file(path)}",
        str(path),
        path.stat().st_size,
    )


def _where(command: Where) -> WeightsReport:
    from vision3d.paths import home
    from vision3d.weights import registry

    if not command.names:
        folder = home() / "weights"
        return WeightsReport(str(folder), {"folder": str(folder)})
    paths = {}
    for name in command.names:
        if registry.manifest()[name] and registry.pulled(name) is None:
            raise registry.not_pulled(name)
        paths[name] = str(registry.entry(name))
    return WeightsReport("\n".join(paths.values()), {"weights": paths})


def _convert(command: Convert) -> WeightsReport:
    from vision3d.weights import registry
    from vision3d.weights.convert import convert
    from vision3d.weights.manifest import manifest

    source = as_path(command.source)
    if not source.exists() and command.source in manifest():
        if registry.pulled(command.source) is None:
            raise registry.not_pulled(command.source)
        source = registry.entry(command.source)
    done = convert(source, command.out, prediction=command.prediction, rest=command.rest)
    return WeightsReport(str(done), {"out": str(command.out), **vars(done)})


def _remove(command: Remove) -> WeightsReport:
    from vision3d.weights import registry

    _need_names(command.names)
    return _summary([registry.remove(name, keep_cache=command.keep_cache) for name in command.names])
