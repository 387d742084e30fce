"""Progress: bars on terminals, few lines in logs, nothing when quiet."""

from __future__ import annotations

import io
import sys

import pytest

from vision3d import progress as module
from vision3d.progress import progress, say, set_debug, set_quiet, show_traceback, warn


class Terminal(io.StringIO):
    """Pretends to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _loud():
    yield
    set_quiet(False)
    set_debug(False)


def test_a_loop_passes_its_items_through():
    assert list(progress([1, 2, 3], description="x")) == [1, 2, 3]
    assert list(progress(iter("ab"))) == ["a", "b"]


def test_a_log_file_gets_a_line_now_and_then(capsys, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    list(progress(range(10), description="images"))
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) < 10
    assert lines[0].startswith("images: ")
    assert "/10" in lines[0]


def test_a_quick_loop_leaves_no_line_in_a_log_file(capsys):
    list(progress(range(1000), description="images"))
    assert capsys.readouterr().err == ""


def test_quiet_silences_bars_and_remarks_but_not_warnings(capsys, monkeypatch):
    monkeypatch.setattr(module, "LOG_SECONDS", 0.0)
    set_quiet(True)
    list(progress(range(3), description="images"))
    say("remark")
    warn("caution")
    assert capsys.readouterr().err == "warning: caution\n"


def test_bars_nest_on_a_terminal_and_remarks_do_not_break_them(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for _ in progress(range(2), description="images"):
        for _ in progress(range(3), description="tiles"):
            assert [task.description for task in module._bars.tasks] == ["images", "tiles"]
            say("a [remark] with brackets")
        assert [task.description for task in module._bars.tasks] == ["images"]
    assert terminal.getvalue().count("a [remark] with brackets") == 6
    assert module._bars is None


def test_a_bar_is_taken_away_when_its_loop_breaks(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ValueError, match="stop"), progress(total=5, description="steps") as bar:
        bar.advance(2)
        raise ValueError("stop")
    assert module._bars is None
    assert bar.done == 2


def test_counting_by_hand_needs_a_with_statement():
    with pytest.raises(TypeError):
        list(progress(total=3))


def test_tracebacks_are_shown_when_debugging_only(capsys):
    show_traceback(ValueError("deep"))
    assert capsys.readouterr().err == ""
    set_debug(True)
    show_traceback(ValueError("deep"))
    assert "ValueError: deep" in capsys.readouterr().err
