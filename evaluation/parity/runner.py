"""``vision3d parity``: run every fixture of a folder against this implementation.

Exit codes: 0 everything compared is within the fixtures' own tolerances; 1 something is not, or a check
raised; 3 nothing failed, but something could not be compared (a system, kind, output or option that is not
known here, or a damaged fixture); 2 the arguments cannot be used.
"""

from __future__ import annotations

import fnmatch
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from vision3d.errors import InputError
from vision3d.evaluation.parity.case import BrokenFixture, Case, find_cases
from vision3d.evaluation.parity.compare import OutputReport, compare, unknown_options
from vision3d.evaluation.parity.registry import find_check, is_known_system
from vision3d.progress import is_quiet, say, show_traceback

EXIT_FAILED, EXIT_UNKNOWN = 1, 3
_HEADINGS = ("system", "case", "output", "max abs", "max rel", "tolerance", "verdict")
_WIDTHS = (14, 22, 28, 9, 9, 26)


@dataclass
class CaseReport:
    """How one fixture fared.

    Attributes:
        system, case, kind: which one.
        outputs: its outputs in the fixture's order; one entry named "-" where the case as a whole failed.
        seconds: time its check took.
    """

    system: str
    case: str
    kind: str
    outputs: list[OutputReport] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """The worst of its outputs' verdicts: fail, unknown, skip (if all are), pass."""
        verdicts = {output.verdict for output in self.outputs}
        for worst in ("fail", "unknown", "pass"):
            if worst in verdicts:
                return worst
        return "skip"


@dataclass
class ParityReport:
    """How a folder of fixtures fared.

    Attributes:
        cases: in the order of their paths.
        seconds: of the whole run.
    """

    cases: list[CaseReport] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, verdict: str) -> int:
        """Number of cases with a verdict."""
        return sum(case.verdict == verdict for case in self.cases)

    @property
    def exit_code(self) -> int:
        """See the module."""
        outputs = [output.verdict for case in self.cases for output in case.outputs]
        if "fail" in outputs:
            return EXIT_FAILED
        return EXIT_UNKNOWN if "unknown" in outputs else 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON; figures that are not finite become null."""

        def output_dict(output: OutputReport) -> dict[str, Any]:
            values = asdict(output)
            return {
                k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
            }

        return {
            "passed": self.count("pass"),
            "failed": self.count("fail"),
            "unknown": self.count("unknown"),
            "skipped": self.count("skip"),
            "seconds": round(self.seconds, 2),
            "cases": [
                {
                    "system": case.system,
                    "case": case.case,
                    "kind": case.kind,
                    "verdict": case.verdict,
                    "seconds": round(case.seconds, 3),
                    "outputs": [output_dict(output) for output in case.outputs],
                }
                for case in self.cases
            ],
        }

    def __str__(self) -> str:
        outputs = sum(len(case.outputs) for case in self.cases)
        lines = [
            f"{self.count('pass')} cases pass, {self.count('fail')} fail, {self.count('unknown')} unknown, "
            f"{self.count('skip')} skipped; {outputs} outputs in {self.seconds:.1f} s"
        ]
        absent = sorted(
            {case.system for case in self.cases if case.kind != "?" and not is_known_system(case.system)}
        )
        if absent:
            lines.append(f"systems not known here: {', '.join(absent)}")
        titles = {"fail": "failed", "unknown": "not known here", "skip": "skipped"}
        for verdict, title in titles.items():
            found = [
                f"{c.system}/{c.case}" for c in self.cases if c.verdict == verdict and c.system not in absent
            ]
            if found:
                lines.append(f"{title}: {', '.join(found)}")
        return "\n".join(lines)


def parity(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    system: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    case: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    slow: bool = False,
) -> ParityReport:
    """Compare this implementation with stored outputs of the published ones.

    Prints, for every output of every fixture, the largest absolute and relative error, the fixture's own
    tolerance and the verdict. Exit code 1: something is out of tolerance; 3: something is not known here and
    was not compared.

    Args:
        folder: folder of fixtures, at any depth.
        system: only this system; may be given several times.
        case: only cases of this name or pattern (real_*); may be given several times.
        slow: also run cases at real width, which need several GB of memory and minutes.
    """
    report = run_parity(folder, systems=system, names=case, slow=slow, show=print)
    if not is_quiet():
        print()
    return report


def run_parity(
    folder: Path,
    *,
    systems: tuple[str, ...] = (),
    names: tuple[str, ...] = (),
    slow: bool = False,
    show: Any = None,
) -> ParityReport:
    """Run the fixtures under a folder.

    Args:
        folder: searched at any depth.
        systems: restrict to these; empty for all.
        names: restrict to case names or patterns; empty for all.
        slow: run cases at real width, too.
        show: called with each line of the table as it is known; None for no table.

    Raises:
        InputError: no fixtures there, or none that match.
    """
    report = ParityReport()
    started = time.monotonic()
    headed = False
    for item in _selected(folder, systems, names):
        result = _run_case(item, slow) if isinstance(item, Case) else _broken(folder, *item)
        report.cases.append(result)
        if show is not None:
            lines = [
                _row(result, output)
                for output in result.outputs
                if not is_quiet() or output.verdict == "fail"
            ]
            if lines and not headed:
                show(_layout(_HEADINGS))
                headed = True
            for line in lines:
                show(line)
    report.seconds = time.monotonic() - started
    if not report.cases:
        wanted = ", ".join((*systems, *names))
        raise InputError(f"no fixture under {folder} matches {wanted}", "check the names")
    return report


def _selected(
    folder: Path, systems: tuple[str, ...], names: tuple[str, ...]
) -> Iterator[Case | tuple[Path, str]]:
    for item in find_cases(folder):
        path = item.path if isinstance(item, Case) else item[0]
        if systems and (item.system if isinstance(item, Case) else path.parent.name) not in systems:
            continue
        if names and not any(fnmatch.fnmatchcase(path.stem, pattern) for pattern in names):
            continue
        yield item


def _broken(folder: Path, path: Path, reason: str) -> CaseReport:
    note = f"{path.relative_to(folder)}: {reason}"
    return CaseReport(path.parent.name, path.stem, "?", [OutputReport("-", "unknown", note=note)])


def _run_case(case: Case, slow: bool) -> CaseReport:
    report = CaseReport(case.system, case.name, case.kind)
    check = find_check(case.system, case.kind)
    if check is None:
        what = f"kind {case.kind!r}" if is_known_system(case.system) else f"system {case.system!r}"
        report.outputs.append(OutputReport("-", "unknown", note=f"{what} is not known here"))
        return report
    if case.is_slow and not slow:
        # What could not be compared is worth knowing before minutes are spent on it.
        refused = unknown_options(case, check)
        report.outputs += [OutputReport(name, "unknown", note=note) for name, note in refused.items()]
        report.outputs.append(OutputReport("-", "skip", note="slow: run with --slow"))
        return report
    if case.is_slow:
        say(f"{case.system}/{case.name} …")
    started = time.monotonic()
    try:
        results = check.run(case)
        report.outputs += compare(case, check, results)
    except BrokenFixture as reason:
        report.outputs.append(OutputReport("-", "unknown", note=str(reason)))
    except Exception as error:
        # One check that breaks must not hide the state of the others.
        report.outputs.append(OutputReport("-", "fail", note=f"{type(error).__name__}: {error}"))
        show_traceback(error)
    finally:
        case.close()
    report.seconds = time.monotonic() - started
    return report


def _row(case: CaseReport, output: OutputReport) -> str:
    def number(value: float) -> str:
        return "" if math.isnan(value) else f"{value:.2e}"

    verdict = output.verdict + (f" ({' '.join(output.note.split())})" if output.note else "")
    cells = (case.system, case.case, output.output, number(output.max_abs), number(output.max_rel))
    return _layout((*cells, output.tolerance, verdict))


def _layout(cells: tuple[str, ...]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=False)]
    return " ".join([*padded, *cells[len(_WIDTHS) :]]).rstrip()
