"""Comparison of what a check computed with what its fixture stores, as strictly as the fixture says.

An output's options first say which part of which tensor is stored (``of``, ``channel_stride``, ``stats``, …),
then how close it must be (``atol``, ``rtol``, ``mean_atol``, …). Every option that this module does not know,
and that the check did not declare, raises :class:`UnknownOption`: a tolerance that is not understood must not
be passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vision3d.evaluation.parity.case import Case
from vision3d.evaluation.parity.registry import Check

Options = dict[str, Any]

SELECTIONS = frozenset(
    {"of", "channel_stride", "channels", "rows", "argmax_axis", "sum_axis", "stats", "columns", "stride"}
    | {"first_points", "skip_rows", "reduce", "transform", "keyed_by", "as_set", "only_where", "in"}
)
"""Options that say what of a tensor is stored and compared."""
TOLERANCES = frozenset(
    {"atol", "rtol", "mean_atol", "max_mismatch", "outlier_fraction", "exact_columns"}
    | {"first_steps", "first_steps_rtol", "compare", "median_voxels", "p95_voxels"}
)
"""Options that say how close it must be."""
ABSENCES = frozenset({"optional", "same_rng"})
"""Options under which a check may leave an output out."""

_STATISTICS: dict[str, Callable[[np.ndarray], Any]] = {
    "mean": lambda x: x.mean(),
    "population std": lambda x: x.std(),
    "absmax": lambda x: np.abs(x).max(),
    "absmean": lambda x: np.abs(x).mean(),
}


class UnknownOption(Exception):
    """An output asks for something that cannot be done here; says what."""


@dataclass
class OutputReport:
    """How one output fared.

    Attributes:
        output: its name.
        verdict: "pass", "fail", "skip" or "unknown".
        max_abs: largest absolute difference, NaN where there is none.
        max_rel: largest difference relative to the stored value, over values that are not zero.
        tolerance: the fixture's tolerance, in words.
        note: why it failed or was left out.
    """

    output: str
    verdict: str
    max_abs: float = float("nan")
    max_rel: float = float("nan")
    tolerance: str = ""
    note: str = ""


@dataclass(frozen=True)
class Tolerance:
    """What a fixture allows for one output.

    Attributes:
        atol, rtol: ``|got - stored| <= atol + rtol * |stored|``; lists are per column (last axis).
        mean_atol: bound of the mean absolute difference.
        max_mismatch: share of elements that may differ.
        mismatch_is_any_difference: whether ``max_mismatch`` counts every difference (and ``atol`` still
            bounds all of them) or only what lies beyond ``atol`` and ``rtol``.
        outlier_fraction: share of pixels that may lie beyond.
        exact_columns: columns (last axis) that must be equal.
        first_steps, first_steps_rtol: the first so many rows keep to this ``rtol``.
    """

    atol: Any = 0.0
    rtol: Any = 0.0
    mean_atol: float | None = None
    max_mismatch: float | None = None
    mismatch_is_any_difference: bool = True
    outlier_fraction: float | None = None
    exact_columns: tuple[int, ...] = ()
    first_steps: int | None = None
    first_steps_rtol: float | None = None

    @classmethod
    def read(cls, case: Case, options: Options) -> Tolerance:
        """The tolerance that an output states. Raises UnknownOption if it states none."""
        if "atol" not in options and "rtol" not in options:
            raise UnknownOption("it states no tolerance")
        if ("first_steps" in options) != ("first_steps_rtol" in options):
            raise UnknownOption("first_steps and first_steps_rtol belong together")
        atol = options.get("atol", 0.0)
        if "atol_other_pillow" in case.meta and case.meta.get("pillow") != _pillow_version():
            atol = max(atol, case.meta["atol_other_pillow"])
        # Two readings are in use; the rule of the fixture says which. Without a rule, the stricter one holds.
        beyond = bool(re.search(r"max_mismatch[^;]*beyond", str(case.meta.get("tolerance_rule", ""))))
        return cls(
            atol=atol,
            rtol=options.get("rtol", 0.0),
            mean_atol=options.get("mean_atol"),
            max_mismatch=options.get("max_mismatch"),
            mismatch_is_any_difference=not beyond,
            outlier_fraction=options.get("outlier_fraction"),
            exact_columns=tuple(options.get("exact_columns", ())),
            first_steps=options.get("first_steps"),
            first_steps_rtol=options.get("first_steps_rtol"),
        )

    def __str__(self) -> str:
        def number(value: Any) -> str:
            return "[" + " ".join(map(number, value)) + "]" if isinstance(value, list) else f"{value:.3g}"

        parts = [number(self.atol)] if np.any(np.asarray(self.atol) != 0) else []
        if np.any(np.asarray(self.rtol) != 0):
            parts.append(f"{number(self.rtol)}·|x|")
        text = " + ".join(parts) or "exact"
        if self.first_steps is not None:
            text += f", first {self.first_steps}: {number(self.first_steps_rtol)}·|x|"
        if self.exact_columns:
            text += f", columns {list(self.exact_columns)} exact"
        if self.mean_atol is not None:
            text += f", mean {number(self.mean_atol)}"
        if self.max_mismatch is not None:
            what = "differ" if self.mismatch_is_any_difference else "beyond"
            text += f", ≤ {100 * self.max_mismatch:g} % {what}"
        if self.outlier_fraction is not None:
            text += f", ≤ {100 * self.outlier_fraction:g} % beyond"
        return text


@dataclass
class Pair:
    """An output being compared: computed and stored values, and which elements count."""

    got: np.ndarray
    stored: np.ndarray
    packed: bool = False


def unknown_options(case: Case, check: Check) -> dict[str, str]:
    """Output name → option that neither the comparison nor the check knows."""
    known = SELECTIONS | TOLERANCES | ABSENCES | check.options
    return {
        name: f"option {sorted(set(options) - known)[0]!r} is not known"
        for name, options in case.outputs.items()
        if set(options) - known
    }


def compare(case: Case, check: Check, results: Mapping[str, Any]) -> list[OutputReport]:
    """Compare every output of a case with what its check computed."""
    refused = unknown_options(case, check)
    reports = []
    for name, options in case.outputs.items():
        if name in refused:
            reports.append(OutputReport(name, "unknown", note=refused[name]))
            continue
        try:
            reports.append(_compare_output(case, check, results, name, options))
        except UnknownOption as reason:
            reports.append(OutputReport(name, "unknown", note=str(reason)))
    return reports


def _compare_output(
    case: Case, check: Check, results: Mapping[str, Any], name: str, options: Options
) -> OutputReport:
    stored = _reference(case, name, options)
    source = check.tensor_of(name, options)
    if source not in results:
        for permission in sorted(ABSENCES):
            if options.get(permission):
                return OutputReport(name, "skip", note=permission.replace("_", " "))
        raise UnknownOption(f"the check computes no {source!r}")
    if "compare" in options:
        return _compare_vertices(case, name, options, results[source], stored)
    tolerance = Tolerance.read(case, options)
    if not _is_numeric(stored):
        same = _plain(results[source]) == _plain(stored)
        return OutputReport(
            name, "pass" if same else "fail", tolerance="equal", note="" if same else "differs"
        )
    pair = Pair(_as_array(results[source]), np.asarray(stored))
    pair.packed = name.endswith("_packed") and pair.stored.dtype == np.uint8
    try:
        _select(pair, case, results, name, options)
    except _Mismatch as reason:
        return OutputReport(name, "fail", tolerance=str(tolerance), note=str(reason))
    if pair.got.shape != pair.stored.shape:
        note = f"shape {pair.got.shape} instead of {pair.stored.shape}"
        return OutputReport(name, "fail", tolerance=str(tolerance), note=note)
    return _judge(name, pair, tolerance)


class _Mismatch(Exception):
    """The two sides cannot be laid beside each other."""


def _reference(case: Case, name: str, options: Options) -> Any:
    """What the fixture stores for an output: an array, or with ``in: json`` a field of the JSON."""
    if "in" in options:
        if options["in"] != "json" or name not in case.meta:
            raise UnknownOption(f"no reference in {options['in']!r}")
        value = case.meta[name]
        return np.array(list(value.values())) if _is_number_table(value) else value
    if name not in case.arrays:
        raise UnknownOption("the fixture stores no array of this name")
    return case.arrays[name]


def _is_number_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, (int, float)) for v in value.values())


def _is_numeric(value: Any) -> bool:
    if isinstance(value, dict):
        return False
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except ValueError:  # ragged
        return False


def _plain(value: Any) -> Any:
    """Nested lists, tables, numbers and text, so that a tuple equals a list and an array its values."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _as_array(value: Any) -> np.ndarray:
    if _is_number_table(value):
        return np.array(list(value.values()))
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() and value.element_size() < 4 else value).numpy()
    return np.asarray(value)


def _batch_axis(array: np.ndarray) -> int:
    """Axis of points or tokens: after the batch in (B, N, C), the first in (N, C)."""
    return 1 if array.ndim >= 3 else 0


def _select(pair: Pair, case: Case, results: Mapping[str, Any], name: str, options: Options) -> None:
    """Cut the whole tensor down to what is stored, in the order: slice, reduce, pair up, mask, transform."""
    try:
        _slice(pair, options)
    except (IndexError, ValueError) as error:  # numpy's AxisError is both
        raise _Mismatch(f"shape {pair.got.shape} does not fit its options ({error})") from error
    if options.get("as_set") and options.get("keyed_by"):
        raise UnknownOption("as_set and keyed_by exclude each other")
    if options.get("as_set"):
        pair.got, pair.stored = _sorted_rows(pair.got), _sorted_rows(pair.stored)
    if "keyed_by" in options:
        _pair_by_key(pair, case, results, options["keyed_by"])
    if "only_where" in options:
        _mask(pair, case, results, name, options["only_where"])
    if "transform" in options:
        if options["transform"] != "log":
            raise UnknownOption(f"transform {options['transform']!r} is not known")
        if (pair.got <= 0).any():
            raise _Mismatch("values that have no logarithm")
        pair.got, pair.stored = np.log(pair.got.astype(np.float64)), np.log(pair.stored.astype(np.float64))
    if "reduce" in options:
        _reduce(pair, str(options["reduce"]))


def _slice(pair: Pair, options: Options) -> None:
    got = pair.got
    if "channel_stride" in options:
        got = got[:, :: options["channel_stride"]]
    if "channels" in options:
        got = got[:, options["channels"]]
    if "rows" in options:
        first, last = options["rows"]
        got = np.take(got, range(first, last), axis=_batch_axis(got))
    if "first_points" in options:
        got = np.take(got, range(options["first_points"]), axis=_batch_axis(got))
    if "stride" in options:
        strides = options["stride"]
        strides = strides if isinstance(strides, list) else [strides]
        # A check may hand over the stored part where `of` describes a tensor instead of naming one.
        if got.shape != pair.stored.shape:
            got = got[tuple(slice(None, None, step) for step in strides)]
    if "argmax_axis" in options:
        got = np.asarray(got.argmax(axis=options["argmax_axis"]))
    if "sum_axis" in options:
        got = np.asarray(got.sum(axis=options["sum_axis"]))
    if "stats" in options:
        wrong = [s for s in options["stats"] if s not in _STATISTICS]
        if wrong:
            raise UnknownOption(f"statistic {wrong[0]!r} is not known")
        wide = got.astype(np.float64)
        got = np.array([_STATISTICS[s](wide) for s in options["stats"]])
    if "columns" in options:
        columns = options["columns"]
        if got.shape[-1] == pair.stored.shape[-1]:
            got = got[..., columns]
        pair.stored = pair.stored[..., columns]
    if "skip_rows" in options:
        if got.shape != pair.stored.shape:
            raise _Mismatch(f"shape {got.shape} instead of {pair.stored.shape}")
        got = np.delete(got, options["skip_rows"], axis=0)
        pair.stored = np.delete(pair.stored, options["skip_rows"], axis=0)
    pair.got = got


def _row_order(rows: np.ndarray) -> np.ndarray:
    return np.lexsort(rows.reshape(len(rows), -1).T[::-1])


def _sorted_rows(rows: np.ndarray) -> np.ndarray:
    return rows[_row_order(rows)]


def _pair_by_key(pair: Pair, case: Case, results: Mapping[str, Any], key: str) -> None:
    """Bring the rows of both sides into the order of their keys."""
    if key not in results or key not in case.arrays:
        raise UnknownOption(f"rows are keyed by {key!r}, which is not there")
    ours, theirs = _as_array(results[key]), case.arrays[key]
    if ours.shape != theirs.shape or not np.array_equal(_sorted_rows(ours), _sorted_rows(theirs)):
        raise _Mismatch(f"the keys {key!r} differ")
    if len(np.unique(theirs, axis=0)) != len(theirs):
        raise UnknownOption(f"keys {key!r} that are not unique")
    if len(pair.got) != len(ours):
        raise _Mismatch(f"{len(pair.got)} rows for {len(ours)} keys")
    pair.got, pair.stored = pair.got[_row_order(ours)], pair.stored[_row_order(theirs)]


def _mask(pair: Pair, case: Case, results: Mapping[str, Any], name: str, condition: str) -> None:
    """Keep what a condition on a stored array selects, or a mask that the check returned as ``NAME:where``.

    A condition in words (such as a margin of the check's own similarities) needs such a mask.
    """
    if f"{name}:where" in results:
        mask = _as_array(results[f"{name}:where"]).astype(bool)
    else:
        match = re.fullmatch(r"\s*(\w+)\s*(>=|<=|>|<)\s*([-+0-9.eE]+)\s*", condition)
        if not match or match[1] not in case.arrays:
            raise UnknownOption(f"condition {condition!r} is not understood")
        compare_with = {">": np.greater, ">=": np.greater_equal, "<": np.less, "<=": np.less_equal}[match[2]]
        mask = compare_with(case.arrays[match[1]], float(match[3]))
    if pair.got.shape != pair.stored.shape:
        raise _Mismatch(f"shape {pair.got.shape} instead of {pair.stored.shape}")
    # A condition per row selects whole rows: drop the mask's own axes that the output does not share.
    while mask.shape != pair.stored.shape[: mask.ndim] or mask.ndim > pair.stored.ndim:
        if mask.ndim == 1:
            raise UnknownOption(f"condition {condition!r} does not fit shape {pair.stored.shape}")
        mask = np.asarray(mask.all(axis=-1))
    if not mask.any():
        raise _Mismatch(f"nothing is left where {condition}")
    pair.got, pair.stored = pair.got[mask], pair.stored[mask]


def _reduce(pair: Pair, how: str) -> None:
    if how == "mean":
        pair.got, pair.stored = np.asarray(pair.got.mean()), np.asarray(pair.stored.mean())
    elif how.startswith("mean over rows"):
        # The number of runs behind each mean is the check's choice; a single run may come as a vector.
        pair.got = pair.got.mean(axis=0) if pair.got.ndim == pair.stored.ndim else pair.got
        pair.stored = pair.stored.mean(axis=0)
    else:
        raise UnknownOption(f"reduction {how!r} is not known")


def _judge(name: str, pair: Pair, tolerance: Tolerance) -> OutputReport:
    got, stored = pair.got, pair.stored
    if pair.packed:
        got, stored = np.unpackbits(got), np.unpackbits(stored)
    wide = np.int64 if got.dtype.kind in "biu" and stored.dtype.kind in "biu" else np.float64
    got, stored = got.astype(wide), stored.astype(wide)
    # Infinities and NaN must be where they are stored, and count as equal there.
    with np.errstate(invalid="ignore"):
        equal = (got == stored) | (np.isnan(got) & np.isnan(stored))
        difference = np.where(equal, 0, np.abs(got - stored).astype(np.float64))
    size = np.abs(stored).astype(np.float64)
    finite = np.isfinite(difference)
    allowed = _allowed(tolerance, np.nan_to_num(size, nan=0.0, posinf=0.0), difference.shape)
    beyond = ~equal & ~(finite & (difference <= allowed))
    relative = difference[(size > 0) & finite] / size[(size > 0) & finite]
    report = OutputReport(
        name,
        "pass",
        max_abs=float(difference.max())
        if difference.size and finite.all()
        else float("inf" if difference.size else 0),
        max_rel=float(relative.max()) if relative.size else 0.0,
        tolerance=str(tolerance),
    )
    reasons = _objections(tolerance, difference, equal, beyond)
    if reasons:
        report.verdict, report.note = "fail", "; ".join(reasons)
    return report


def _allowed(tolerance: Tolerance, size: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Largest difference allowed of each element."""
    for value in (tolerance.atol, tolerance.rtol):
        if isinstance(value, list) and (not shape or len(value) != shape[-1]):
            raise UnknownOption(f"{len(value)} tolerances for columns of shape {shape}")
    allowed = np.broadcast_to(np.asarray(tolerance.atol) + np.asarray(tolerance.rtol) * size, shape).copy()
    if tolerance.first_steps is not None and tolerance.first_steps_rtol is not None:
        first = slice(0, tolerance.first_steps)
        allowed[first] = np.asarray(tolerance.atol) + tolerance.first_steps_rtol * size[first]
    if tolerance.exact_columns:
        allowed[..., list(tolerance.exact_columns)] = 0
    return allowed


def _objections(
    tolerance: Tolerance, difference: np.ndarray, equal: np.ndarray, beyond: np.ndarray
) -> list[str]:
    reasons = []
    spared = None
    if tolerance.max_mismatch is not None:
        counted = ~equal if tolerance.mismatch_is_any_difference else beyond
        share = float(counted.mean()) if counted.size else 0.0
        if share > tolerance.max_mismatch:
            what = "differ" if tolerance.mismatch_is_any_difference else "lie beyond"
            reasons.append(f"{100 * share:.3g} % {what}")
        spared = None if tolerance.mismatch_is_any_difference else "max_mismatch"
    if tolerance.outlier_fraction is not None:
        # A pixel is wrong when one of its channels is.
        pixels = beyond.any(axis=-1) if beyond.ndim >= 3 and beyond.shape[-1] <= 4 else beyond
        share = float(pixels.mean()) if pixels.size else 0.0
        if share > tolerance.outlier_fraction:
            reasons.append(f"{100 * share:.3g} % of pixels lie beyond")
        spared = "outlier_fraction"
    if spared is None and beyond.any():
        reasons.append(f"{int(beyond.sum())} of {beyond.size} values lie beyond")
    if tolerance.mean_atol is not None:
        mean = float(difference.mean()) if difference.size else 0.0
        if not mean <= tolerance.mean_atol:
            reasons.append(f"mean difference {mean:.3g}")
    return reasons


def _compare_vertices(case: Case, name: str, options: Options, got: Any, stored: Any) -> OutputReport:
    """Distances of two point sets, each point to the nearest of the other set, in voxels."""
    if options["compare"] != "nearest vertex, both directions" or "voxel" not in case.meta:
        raise UnknownOption(f"comparison {options['compare']!r} is not known")
    from scipy.spatial import cKDTree

    ours, theirs = _as_array(got).astype(np.float64), np.asarray(stored, np.float64)
    tolerance = f"median {options['median_voxels']:g}, 95 % {options['p95_voxels']:g} voxels"
    if ours.ndim != 2 or ours.shape[1:] != theirs.shape[1:] or not len(ours):
        return OutputReport(name, "fail", tolerance=tolerance, note=f"shape {ours.shape}")
    median = p95 = worst = 0.0
    for here, there in ((ours, theirs), (theirs, ours)):
        distance = cKDTree(there).query(here)[0] / case.meta["voxel"]
        median, p95 = max(median, float(np.median(distance))), max(p95, float(np.percentile(distance, 95)))
        worst = max(worst, float(distance.max()))
    fine = median <= options["median_voxels"] and p95 <= options["p95_voxels"]
    note = f"median {median:.3g}, 95 % {p95:.3g} voxels"
    return OutputReport(
        name, "pass" if fine else "fail", worst * case.meta["voxel"], tolerance=tolerance, note=note
    )


def _pillow_version() -> str:
    import PIL

    return PIL.__version__
