"""The parity runner never passes what a fixture would not, and never skips in silence."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vision3d import cli
from vision3d.errors import InputError
from vision3d.evaluation.parity import recipe, registry
from vision3d.evaluation.parity.case import Case
from vision3d.evaluation.parity.compare import ABSENCES, SELECTIONS, TOLERANCES, compare
from vision3d.evaluation.parity.registry import Check, named_by_of
from vision3d.evaluation.parity.runner import parity, run_parity

RULE_ANY = (
    "|got - stored| <= atol + rtol*|stored| for every element (both 0: exact); mean_atol bounds the mean "
    "absolute error, max_mismatch the fraction of elements that may differ at all"
)
RULE_BEYOND = (
    "|got - stored| <= atol + rtol*|stored| for every element (both 0: exact); "
    "max_mismatch = fraction of elements allowed beyond that"
)


def write_fixture(
    folder: Path, name: str, arrays: dict[str, Any], outputs: dict[str, dict[str, Any]], **meta: Any
) -> Path:
    """One fixture on disk; system "toy" and kind "double" unless said otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", **arrays)
    content = {"system": "toy", "kind": "double", "tolerance_rule": RULE_ANY, "outputs": outputs, **meta}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / f"{name}.json"


@pytest.fixture(autouse=True)
def _toy_checks(monkeypatch):
    monkeypatch.setattr(registry, "_CHECKS", dict(registry._CHECKS))

    @registry.check("toy", "double", "double_real_width", options=("power",))
    def double(case: Case) -> dict[str, Any]:
        return {"y": 2 * case.arrays["x"]}

    @registry.check("toy", "broken")
    def broken(case: Case) -> dict[str, Any]:
        raise RuntimeError("the check itself is wrong")


X = np.arange(6, dtype=np.float32)
GOOD = {"y": {"atol": 1e-6, "rtol": 0.0}}


def verdicts(folder: Path, **options: Any) -> dict[str, str]:
    report = run_parity(folder, **options)
    return {
        f"{case.case}.{output.output}": output.verdict for case in report.cases for output in case.outputs
    }


# ---- the runner


def test_equal_outputs_pass(tmp_path, capsys):
    write_fixture(tmp_path / "deep" / "toy", "a", {"x": X, "y": 2 * X}, GOOD)
    assert cli.main(["parity", str(tmp_path)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == [
        "system",
        "case",
        "output",
        "max",
        "abs",
        "max",
        "rel",
        "tolerance",
        "verdict",
    ]
    assert table[1].split() == ["toy", "a", "y", "0.00e+00", "0.00e+00", "1e-06", "pass"]


def test_a_difference_beyond_the_stated_tolerance_fails_with_exit_code_1(tmp_path, capsys):
    stored = 2 * X
    stored[3] += 1e-4
    write_fixture(tmp_path, "a", {"x": X, "y": stored}, GOOD)
    write_fixture(tmp_path, "b", {"x": X, "y": 2 * X}, GOOD)
    assert cli.main(["parity", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "fail (1 of 6 values lie beyond)" in shown
    assert "1 cases pass, 1 fail" in shown


@pytest.mark.parametrize(
    "meta", [{"kind": "triple"}, {"system": "nowhere"}, {"system": "../case"}, {"system": "runner"}]
)
def test_an_unknown_kind_or_system_is_exit_code_3_and_named(tmp_path, capsys, meta):
    write_fixture(tmp_path, "a", {"x": X, "y": 2 * X}, GOOD)
    write_fixture(tmp_path, "b", {"x": X, "y": 2 * X}, GOOD, **meta)
    assert cli.main(["parity", str(tmp_path)]) == 3
    assert next(iter(meta.values())) in capsys.readouterr().out
    assert cli.main(["parity", str(tmp_path), "--case", "a"]) == 0


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ({"y": {"atol": 1.0, "rtol": 0.0, "fuzz": 2}}, "fuzz"),
        ({"z": {"atol": 1.0, "rtol": 0.0}}, "stores no array"),
        ({"x": {"atol": 1.0, "rtol": 0.0}}, "computes no 'x'"),
        ({"y": {}}, "no tolerance"),
        ({"y": {"atol": 1.0, "reduce": "median"}}, "median"),
        ({"y": {"atol": 1.0, "transform": "square"}}, "square"),
        ({"y": {"atol": 1.0, "only_where": "the moon is full"}}, "the moon is full"),
        ({"y": {"atol": 1.0, "stats": ["kurtosis"]}}, "kurtosis"),
        ({"y": {"atol": [1.0, 2.0]}}, "2 tolerances"),
        ({"y": {"atol": 1.0, "first_steps": 2}}, "first_steps"),
    ],
)
def test_options_and_outputs_that_are_not_understood_are_exit_code_3(tmp_path, capsys, outputs, reason):
    write_fixture(tmp_path, "a", {"x": X, "y": 2 * X}, outputs)
    assert cli.main(["parity", str(tmp_path)]) == 3
    assert reason in capsys.readouterr().out


def test_an_option_that_the_check_declares_is_known(tmp_path):
    write_fixture(tmp_path, "a", {"x": X, "y": 2 * X}, {"y": {"atol": 0.0, "power": 1}})
    assert run_parity(tmp_path).exit_code == 0


def test_a_failure_outweighs_what_is_unknown(tmp_path):
    write_fixture(tmp_path, "a", {"x": X, "y": X + 9}, GOOD)
    write_fixture(tmp_path, "b", {"x": X, "y": 2 * X}, GOOD, kind="triple")
    assert run_parity(tmp_path).exit_code == 1


def test_a_check_that_breaks_fails_its_case_only(tmp_path):
    write_fixture(tmp_path, "a", {"x": X}, GOOD, kind="broken")
    write_fixture(tmp_path, "b", {"x": X, "y": 2 * X}, GOOD)
    report = run_parity(tmp_path)
    assert [case.verdict for case in report.cases] == ["fail", "pass"]
    assert "the check itself is wrong" in report.cases[0].outputs[0].note


def test_slow_cases_are_listed_and_run_only_when_asked_for(tmp_path, capsys):
    write_fixture(tmp_path, "a_real_width", {"x": X, "y": 2 * X}, GOOD)
    write_fixture(tmp_path, "b", {"x": X, "y": X}, GOOD, kind="double_real_width")
    write_fixture(tmp_path, "c", {"x": X, "y": 2 * X}, GOOD)
    assert cli.main(["parity", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("skip (slow: run with --slow)") == 2
    assert "1 cases pass, 0 fail, 0 unknown, 2 skipped" in shown
    assert verdicts(tmp_path, slow=True) == {"a_real_width.y": "pass", "b.y": "fail", "c.y": "pass"}


def test_slow_cases_with_unknown_options_are_not_hidden_by_being_slow(tmp_path):
    write_fixture(tmp_path, "a_real_width", {"x": X, "y": 2 * X}, {"y": {"atol": 1.0, "fuzz": 2}})
    assert run_parity(tmp_path).exit_code == 3


def test_tables_without_arrays_are_passed_over(tmp_path):
    write_fixture(tmp_path, "a", {"x": X, "y": 2 * X}, GOOD)
    (tmp_path / "keys.json").write_text(json.dumps({"keys": {"a.weight": [1]}}))
    (tmp_path / "list.json").write_text("[1, 2]")
    assert list(verdicts(tmp_path)) == ["a.y"]


@pytest.mark.parametrize(
    "damage",
    [
        "no npz",
        "no json",
        "bad json",
        "bad npz",
        "cut npz",
        "no kind",
        "no outputs",
        "empty outputs",
        "pickle",
    ],
)
def test_damaged_fixtures_are_exit_code_3_and_not_silent(tmp_path, damage):
    write_fixture(tmp_path, "a", {"x": X, "y": 2 * X}, GOOD)
    path = write_fixture(tmp_path, "b", {"x": X, "y": 2 * X}, GOOD)
    if damage == "no npz":
        path.with_suffix(".npz").unlink()
    elif damage == "no json":
        path.unlink()
    elif damage == "bad json":
        path.write_text("{")
    elif damage == "bad npz":
        path.with_suffix(".npz").write_bytes(b"PK nonsense")
    elif damage == "cut npz":
        whole = path.with_suffix(".npz").read_bytes()
        path.with_suffix(".npz").write_bytes(whole[: len(whole) // 2])
    elif damage == "pickle":
        np.savez(path.with_suffix(".npz"), x=X, y=np.array([print], dtype=object))
    elif damage == "empty outputs":
        path.write_text(json.dumps({**json.loads(path.read_text()), "outputs": {}}))
    else:
        meta = json.loads(path.read_text())
        del meta[damage.removeprefix("no ")]
        path.write_text(json.dumps(meta))
    report = run_parity(tmp_path)
    assert report.exit_code == (1 if damage == "pickle" else 3)  # objects are met when the check reads them
    assert report.count("pass") == 1
    assert len(report.cases) == 2


def test_a_folder_without_fixtures_or_without_matches_is_refused(tmp_path):
    with pytest.raises(InputError):
        run_parity(tmp_path)
    write_fixture(tmp_path, "a", {"x": X, "y": 2 * X}, GOOD)
    with pytest.raises(InputError):
        run_parity(tmp_path, systems=("elsewhere",))
    assert cli.main(["parity", str(tmp_path / "missing")]) == 2


def test_json_holds_every_output(tmp_path, capsys):
    write_fixture(tmp_path, "a", {"x": X, "y": 2 * X}, GOOD)
    write_fixture(tmp_path, "b", {"x": X, "y": 2 * X}, GOOD, kind="triple")
    assert cli.main(["parity", str(tmp_path), "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["passed"], report["unknown"], report["exit_code"]) == (1, 1, 3)
    assert report["cases"][0]["outputs"][0]["tolerance"] == "1e-06"


def test_the_verb_returns_what_it_printed(tmp_path, capsys):
    write_fixture(tmp_path, "a", {"x": X, "y": 2 * X}, GOOD)
    assert parity(tmp_path).count("pass") == 1
    assert "pass" in capsys.readouterr().out


# ---- the comparison


def judge(
    tmp_path: Path,
    stored: Any,
    got: dict[str, Any],
    options: dict[str, Any],
    name: str = "y",
    arrays: dict[str, Any] | None = None,
    **meta: Any,
) -> str:
    """Verdict of one output."""
    stored_arrays = {**({name: stored} if stored is not None else {}), **(arrays or {})}
    path = write_fixture(tmp_path, "case", stored_arrays, {name: options}, **meta)
    case = Case(path, json.loads(path.read_text()))
    check = Check(lambda case: got, frozenset(), named_by_of)
    (report,) = compare(case, check, got)
    return report.verdict


ZERO = np.zeros(1000)


def with_errors(size: float, count: int, length: int = 1000) -> np.ndarray:
    values = np.zeros(length)
    values[:count] = size
    return values


def test_tolerance_is_atol_plus_rtol_of_the_stored_value(tmp_path):
    options = {"atol": 0.1, "rtol": 0.01}
    assert judge(tmp_path, np.array([100.0]), {"y": np.array([101.09])}, options) == "pass"
    assert judge(tmp_path, np.array([100.0]), {"y": np.array([101.11])}, options) == "fail"


def test_zero_tolerance_is_exact(tmp_path):
    options = {"atol": 0, "rtol": 0}
    assert judge(tmp_path, np.array([1, 2]), {"y": np.array([1, 2])}, options) == "pass"
    assert judge(tmp_path, np.float64([1.0]), {"y": np.nextafter(np.float64([1.0]), 2)}, options) == "fail"
    big = np.array([2**60 + 1])  # not representable as a double
    assert judge(tmp_path, big, {"y": big - 1}, options) == "fail"


def test_a_list_of_tolerances_is_per_column(tmp_path):
    options = {"atol": [1.0, 0.1], "rtol": 0}
    assert judge(tmp_path, np.zeros((3, 2)), {"y": np.full((3, 2), [0.9, 0.05])}, options) == "pass"
    assert judge(tmp_path, np.zeros((3, 2)), {"y": np.full((3, 2), [0.9, 0.2])}, options) == "fail"


def test_shape_nan_and_infinity_must_agree(tmp_path):
    options = {"atol": 1e9, "rtol": 1.0}
    assert judge(tmp_path, np.zeros((2, 3)), {"y": np.zeros((3, 2))}, options) == "fail"
    assert judge(tmp_path, np.zeros(3), {"y": np.array([0, np.nan, 0])}, options) == "fail"
    assert judge(tmp_path, np.array([np.inf, 1]), {"y": np.array([np.inf, 1])}, options) == "pass"
    assert judge(tmp_path, np.array([np.inf, 1]), {"y": np.array([-np.inf, 1])}, options) == "fail"
    assert judge(tmp_path, np.array([np.inf, 1]), {"y": np.array([3.0, 1])}, options) == "fail"
    assert judge(tmp_path, np.array([np.nan, 1]), {"y": np.array([np.nan, 1])}, options) == "pass"


def test_mean_atol_bounds_the_mean_besides_the_maximum(tmp_path):
    options = {"atol": 1.0, "rtol": 0, "mean_atol": 0.01}
    assert judge(tmp_path, ZERO, {"y": with_errors(0.9, 10)}, options) == "pass"
    assert judge(tmp_path, ZERO, {"y": with_errors(0.9, 20)}, options) == "fail"
    assert judge(tmp_path, ZERO, {"y": with_errors(1.1, 1)}, options) == "fail"


def test_max_mismatch_counts_every_difference_and_atol_still_bounds_them(tmp_path):
    options = {"atol": 3.0, "rtol": 0, "max_mismatch": 0.005}
    assert judge(tmp_path, ZERO, {"y": with_errors(3, 5)}, options) == "pass"
    assert judge(tmp_path, ZERO, {"y": with_errors(1, 6)}, options) == "fail"
    assert judge(tmp_path, ZERO, {"y": with_errors(4, 1)}, options) == "fail"


def test_max_mismatch_counts_what_lies_beyond_where_the_fixture_says_so(tmp_path):
    options = {"atol": 1e-3, "rtol": 0, "max_mismatch": 0.005}
    rule = {"tolerance_rule": RULE_BEYOND}
    assert judge(tmp_path, ZERO, {"y": with_errors(50, 5)}, options, **rule) == "pass"
    assert judge(tmp_path, ZERO, {"y": with_errors(50, 6)}, options, **rule) == "fail"
    assert judge(tmp_path, ZERO, {"y": with_errors(5e-4, 900)}, options, **rule) == "pass"
    assert judge(tmp_path, ZERO, {"y": with_errors(50, 5)}, options, tolerance_rule="") == "fail"


def test_outlier_fraction_counts_pixels_and_packed_bits(tmp_path):
    options = {"atol": 1e-3, "rtol": 0, "outlier_fraction": 0.01}
    image = np.zeros((10, 20, 4))
    wrong = image.copy()
    wrong[0, :2] = 9  # all channels of 2 of 200 pixels
    assert judge(tmp_path, image, {"y": wrong}, options) == "pass"
    wrong[0, 2, 1] = 9  # one channel of a third: only 9 of 800 values, but 3 of 200 pixels
    assert judge(tmp_path, image, {"y": wrong}, options) == "fail"
    bits = np.zeros(800, bool)
    flipped = bits.copy()
    flipped[::100] = True
    options["atol"] = 0
    packed = {"y_packed": np.packbits(flipped)}
    assert judge(tmp_path, np.packbits(bits), packed, options, name="y_packed") == "pass"
    flipped[1::100] = True
    packed = {"y_packed": np.packbits(flipped)}
    assert judge(tmp_path, np.packbits(bits), packed, options, name="y_packed") == "fail"


FULL = np.random.default_rng(0).normal(size=(2, 12, 5, 4))


@pytest.mark.parametrize(
    ("options", "stored"),
    [
        ({"of": "t"}, FULL),
        ({"of": "t", "channel_stride": 5}, FULL[:, ::5]),
        ({"of": "t", "channels": [0, 7, 11]}, FULL[:, [0, 7, 11]]),
        ({"of": "t", "rows": [2, 6]}, FULL[:, 2:6]),
        ({"of": "t", "first_points": 3}, FULL[:, :3]),
        ({"of": "t", "argmax_axis": 1}, FULL.argmax(1)),
        ({"of": "t", "sum_axis": 1}, FULL.sum(1)),
        ({"of": "t", "stride": [1, 3, 2, 2]}, FULL[:, ::3, ::2, ::2]),
        ({"of": "t", "stats": ["mean", "population std"]}, np.array([FULL.mean(), FULL.std()])),
        ({"of": "t", "stats": ["absmax", "absmean"]}, np.array([np.abs(FULL).max(), np.abs(FULL).mean()])),
        ({"of": "t", "reduce": "mean"}, FULL),
    ],
    ids=lambda value: next(reversed(value)) if isinstance(value, dict) else "",
)
def test_the_stored_part_is_cut_out_of_the_whole_tensor(tmp_path, options, stored):
    options = {"atol": 1e-12, "rtol": 0, **options}
    assert judge(tmp_path, stored, {"t": FULL}, options) == "pass"
    assert judge(tmp_path, stored, {"t": 1.01 * FULL[:, ::-1]}, options) == "fail"


def test_torch_tensors_of_any_float_type_are_compared(tmp_path):
    import torch

    value = torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    assert judge(tmp_path, np.array([1.0, 2.0]), {"y": value}, {"atol": 0, "rtol": 0}) == "pass"


def test_columns_selects_what_is_compared(tmp_path):
    table = np.arange(12).reshape(3, 4)
    options = {"atol": 0, "rtol": 0, "columns": [2, 3]}
    assert judge(tmp_path, table, {"y": table[:, 2:]}, options) == "pass"
    assert judge(tmp_path, table, {"y": table * [0, 0, 1, 1]}, options) == "pass"
    assert judge(tmp_path, table, {"y": table[:, 1:3]}, options) == "fail"


def test_exact_columns_have_no_tolerance(tmp_path):
    stored = np.array([[1.0, 0.5, 3.0]])
    options = {"atol": 0.1, "rtol": 0, "exact_columns": [0, 2]}
    assert judge(tmp_path, stored, {"y": stored + np.array([0, 0.05, 0])}, options) == "pass"
    assert judge(tmp_path, stored, {"y": stored + np.array([0, 0, 0.05])}, options) == "fail"


def test_skip_rows_are_not_compared(tmp_path):
    stored = np.array([[np.nan], [1.0], [2.0]])
    got = np.array([[7.0], [1.0], [2.0]])
    assert judge(tmp_path, stored, {"y": got}, {"atol": 0, "skip_rows": [0]}) == "pass"
    assert judge(tmp_path, stored, {"y": got}, {"atol": 0, "skip_rows": [1]}) == "fail"


def test_first_steps_keep_to_their_own_tolerance(tmp_path):
    stored = np.full((6, 2), 100.0)
    options = {"atol": 0, "rtol": 0.2, "first_steps": 3, "first_steps_rtol": 0.01}
    late, early = stored.copy(), stored.copy()
    late[4] = 115
    early[2] = 102
    assert judge(tmp_path, stored, {"y": late}, options) == "pass"
    assert judge(tmp_path, stored, {"y": early}, options) == "fail"


def test_sets_are_compared_whatever_their_order(tmp_path):
    rows = np.array([[1, 2], [3, 4], [5, 6]])
    options = {"atol": 0, "rtol": 0, "as_set": True}
    assert judge(tmp_path, rows, {"y": rows[[2, 0, 1]]}, options) == "pass"
    assert judge(tmp_path, rows, {"y": rows[[2, 0, 0]]}, options) == "fail"
    assert judge(tmp_path, rows, {"y": rows[:2]}, options) == "fail"


def test_rows_are_paired_by_their_keys(tmp_path):
    keys, values = np.array([[1, 2], [3, 4], [0, 9]]), np.array([[0.1], [0.2], [0.3]])
    order = [2, 0, 1]
    options = {"atol": 1e-9, "rtol": 0, "keyed_by": "k"}
    stored = {"arrays": {"k": keys}}
    assert judge(tmp_path, values, {"y": values[order], "k": keys[order]}, options, **stored) == "pass"
    assert judge(tmp_path, values, {"y": values, "k": keys[order]}, options, **stored) == "fail"
    assert judge(tmp_path, values, {"y": values, "k": keys + 1}, options, **stored) == "fail"


def test_only_where_compares_what_a_stored_array_selects(tmp_path):
    radii = np.array([[0, 0], [3, 2], [1, 4]])
    stored = np.zeros((3, 5))
    got = stored.copy()
    got[0] = 99
    options = {"atol": 0, "rtol": 0, "only_where": "radii>0"}
    assert judge(tmp_path, stored, {"y": got}, options, arrays={"radii": radii}) == "pass"
    got[1, 4] = 1
    assert judge(tmp_path, stored, {"y": got}, options, arrays={"radii": radii}) == "fail"
    assert judge(tmp_path, stored, {"y": got}, options, arrays={"radii": 0 * radii}) == "fail"


def test_a_condition_in_words_needs_a_mask_of_the_check(tmp_path):
    stored, got = np.array([1, 2, 3]), np.array([1, 2, 9])
    options = {"atol": 0, "rtol": 0, "only_where": "the margin is wide"}
    mask = {"y:where": np.array([True, True, False])}
    assert judge(tmp_path, stored, {"y": got, **mask}, options) == "pass"
    assert judge(tmp_path, stored, {"y": got}, options) == "unknown"


def test_logarithms_are_compared_where_asked_for(tmp_path):
    options = {"atol": 0.01, "rtol": 0, "transform": "log"}
    assert judge(tmp_path, np.array([1000.0]), {"y": np.array([1009.0])}, options) == "pass"
    assert judge(tmp_path, np.array([1000.0]), {"y": np.array([1011.0])}, options) == "fail"
    assert judge(tmp_path, np.array([1000.0]), {"y": np.array([-1000.0])}, options) == "fail"


def test_means_over_runs_are_compared(tmp_path):
    runs = np.array([[1.0, 2.0], [3.0, 4.0]])
    options = {"atol": 0.1, "rtol": 0, "reduce": "mean over rows, against the mean of own runs"}
    assert judge(tmp_path, runs, {"y": np.array([[2.05, 3.0]] * 3)}, options) == "pass"
    assert judge(tmp_path, runs, {"y": np.array([2.05, 3.0])}, options) == "pass"
    assert judge(tmp_path, runs, {"y": np.array([[1.0, 2.0]])}, options) == "fail"


def test_references_may_stand_in_the_json(tmp_path):
    options = {"atol": 0, "rtol": 1e-3, "in": "json"}
    x = {"arrays": {"x": X}}
    assert judge(tmp_path, None, {"area": 2.0005}, options, name="area", area=2.0, **x) == "pass"
    assert judge(tmp_path, None, {"area": 2.1}, options, name="area", area=2.0, **x) == "fail"
    table = {"a": 1.0, "b": 2.0}
    assert judge(tmp_path, None, {"m": table}, options, name="m", m=table, **x) == "pass"
    tiles = {"512": {"tiles": [[0, 0]], "names": ["s1"]}}
    for corner, verdict in ((0, "pass"), (1, "fail")):
        got = {"t": {"512": {"tiles": [(0, corner)], "names": ("s1",)}}}
        assert judge(tmp_path, None, got, options, name="t", t=tiles, **x) == verdict
    assert judge(tmp_path, None, {"f": ["b", "a"]}, options, name="f", f=["a", "b"], **x) == "fail"
    assert judge(tmp_path, None, {"f": 1}, options, name="f", **x) == "unknown"


@pytest.mark.parametrize("permission", sorted(ABSENCES))
def test_outputs_may_be_left_out_only_with_permission(tmp_path, permission):
    options = {"atol": 0, "rtol": 0, permission: True}
    assert judge(tmp_path, X, {}, options) == "skip"
    assert judge(tmp_path, X, {"y": X + 1}, options) == "fail"
    assert judge(tmp_path, X, {}, {"atol": 0, "rtol": 0}) == "unknown"


def test_surfaces_are_compared_by_nearest_vertices_in_both_directions(tmp_path):
    grid = np.stack(np.meshgrid(np.arange(9.0), np.arange(9.0), [0.0]), -1).reshape(-1, 3)
    options = {"compare": "nearest vertex, both directions", "median_voxels": 0.25, "p95_voxels": 0.75}
    assert judge(tmp_path, grid, {"y": grid[::-1] + 0.1}, options, voxel=1.0) == "pass"
    assert judge(tmp_path, grid, {"y": grid + np.array([0, 0, 0.3])}, options, voxel=1.0) == "fail"
    assert judge(tmp_path, grid, {"y": grid[:40]}, options, voxel=1.0) == "fail"
    assert judge(tmp_path, grid, {"y": grid}, {**options, "compare": "by eye"}, voxel=1.0) == "unknown"


def test_another_pillow_version_has_the_tolerance_stated_for_it(tmp_path):
    import PIL

    for version, verdict in ((PIL.__version__, "fail"), ("0.1", "pass")):
        meta = {"pillow": version, "atol_other_pillow": 1}
        assert judge(tmp_path, np.array([7]), {"y": np.array([8])}, {"atol": 0, "rtol": 0}, **meta) == verdict


# ---- the published fixtures


def all_cases(folder: Path) -> list[Case]:
    from vision3d.evaluation.parity.case import find_cases

    return [case for case in find_cases(folder) if isinstance(case, Case)]


def test_every_option_of_the_fixtures_is_known(shared):
    """To the comparison, or declared by (or to be declared by) a check."""
    per_check = {"prediction_type", "step_index", "time_add", "q", "k", "size", "max_size", "input_columns"}
    per_check |= {"degree", "mode"}
    for case in all_cases(shared / "golden"):
        for options in case.outputs.values():
            assert set(options) <= SELECTIONS | TOLERANCES | ABSENCES | per_check, case.path


def test_stored_arrays_compare_equal_to_themselves_under_their_own_options(shared):
    """Runs the whole comparison over all published fixtures; slices are taken as stored."""
    cut = {
        "of",
        "channel_stride",
        "channels",
        "rows",
        "argmax_axis",
        "sum_axis",
        "stats",
        "stride",
        "first_points",
    }
    for case in all_cases(shared / "golden"):
        results = {
            name: case.meta[name] if o.get("in") else case.arrays[name] for name, o in case.outputs.items()
        }
        for name, options in case.outputs.items():
            if "only_where" in options and "margin of" in options["only_where"]:
                results[f"{name}:where"] = np.ones(len(results[name]), bool)
            for option in cut & set(options):
                del options[option]
        options_read = frozenset(o for options in case.outputs.values() for o in options)
        for report in compare(case, Check(lambda case: {}, options_read, named_by_of), results):
            assert report.verdict == "pass", (case.path, report)


# ---- the recipe


@pytest.mark.parametrize(
    ("name", "shape", "scale", "offset"),
    [
        ("net.conv.weight", (4, 3, 3, 3), 1 / np.sqrt(27), 0),
        ("net.proj.bias", (5, 2), 1 / np.sqrt(2), 0),
        ("net.conv.bias", (7,), 0.02, 0),
        ("bn.running_mean", (7,), 0.02, 0),
        ("norm.weight", (7,), 0.02, 1),
        ("layer_scale.gamma", (7,), 0.02, 1),
    ],
)
def test_recipe_follows_its_formula(name, shape, scale, offset):
    seed = int.from_bytes(hashlib.sha256(f"9:{name}".encode()).digest()[:8], "little")
    draws = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
    values = recipe.tensor(name, shape, 9)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, offset + scale * draws, rtol=1e-6, atol=1e-7)


def test_recipe_running_variances_are_positive_and_counters_zero():
    variances = recipe.tensor("bn.running_var", (100,), 0)
    assert variances.min() >= 1
    assert recipe.tensor("bn.num_batches_tracked", (), 0) == 0


def test_recipe_values_do_not_depend_on_how_they_are_drawn():
    """Longer than the pieces in which they are made."""
    count = recipe._CHUNK + 17
    seed = int.from_bytes(hashlib.sha256(b"0:a.weight").digest()[:8], "little")
    whole = np.random.Generator(np.random.PCG64(seed)).standard_normal(count).astype(np.float32)
    np.testing.assert_array_equal(
        recipe.tensor("a.weight", (1, count)), whole[None] / np.float32(np.sqrt(count))
    )


def test_recipe_fills_a_module_under_the_checkpoint_s_names():
    import torch

    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(torch.float64)
    recipe.fill(module, 5, "model.")
    shapes = {f"model.{name}": tuple(value.shape) for name, value in module.state_dict().items()}
    lazy = recipe.RecipeWeights(shapes, 5)
    assert len(lazy) == len(shapes) == len(list(lazy))
    for name, value in module.state_dict().items():
        expected = recipe.state_dict(shapes, 5)[f"model.{name}"]
        np.testing.assert_array_equal(value.numpy(), expected)
        if value.is_floating_point():
            np.testing.assert_array_equal(lazy[f"model.{name}"].numpy(), expected)


def test_recipe_equals_the_published_one(shared):
    import importlib.util

    spec = importlib.util.spec_from_file_location("published_recipe", shared / "golden" / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    published = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(published)
    for name, shape in {
        "a.weight": (5, 7),
        "a.bias": (9,),
        "bn.running_var": (3,),
        "n.weight": (4,),
        "c": (),
    }.items():
        for seed in (0, 41):
            np.testing.assert_array_equal(
                recipe.tensor(name, shape, seed), published.tensor(name, shape, seed)
            )
