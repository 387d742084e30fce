"""Agreement with the published implementations, on the fixtures that travel along and on all others at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from vision3d.evaluation.parity.runner import ParityReport, run_parity

SYSTEMS = ("backbone", "dmcalib", "primedepth", "sd_dino", "stablenormal")


def check(report: ParityReport) -> None:
    """Everything agrees, and nothing was left out but what takes minutes."""
    left_out = [output for case in report.cases for output in case.outputs if output.verdict == "skip"]
    assert report.exit_code == 0, str(report)
    assert report.count("pass") > 0
    assert all(output.note.startswith("slow:") for output in left_out), left_out


@pytest.mark.parametrize("system", SYSTEMS)
def test_fixtures_of_the_repository(golden: Path, system: str) -> None:
    check(run_parity(golden, systems=(system,)))


@pytest.mark.parametrize("system", SYSTEMS)
def test_all_other_fixtures(shared: Path, system: str) -> None:
    check(run_parity(shared / "golden", systems=(system,)))


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_fixtures_of_published_width(shared: Path, system: str) -> None:
    check(run_parity(shared / "golden", systems=(system,), slow=True))
