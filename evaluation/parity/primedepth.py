"""Checks of PrimeDepth: rules, attention maps, refiner and heads, the whole pass, the evaluation protocol."""

from __future__ import annotations

import numpy as np

from vision3d.evaluation.parity.case import Case
from vision3d.evaluation.parity.registry import Results, check


@check("primedepth", "depth_eval")
def depth_eval(case: Case) -> Results:
    """Alignment in depth and in inverse depth, and the published measures."""
    from vision3d.evaluation.metrics import align_depth, align_inverse_depth, depth_metrics

    ground_truth, valid = case.arrays["gt"], case.arrays["valid"].astype(bool)
    near, far = case.meta["range"]
    order = [name.partition("(")[0] for name in case.meta["metric_order"]]
    results: Results = {}

    def measures(depth: np.ndarray) -> np.ndarray:
        values = depth_metrics(depth, ground_truth, valid).as_dict()
        return np.array([values[name] for name in order])

    depth, fit = align_depth(case.arrays["pred_depth"], ground_truth, valid, near, far)
    results["depth_scale_shift"] = np.array([fit.scale, fit.shift])
    results["depth_metrics"] = measures(depth)

    resolution = case.meta["max_resolution"]
    _, fit = align_depth(
        case.arrays["pred_depth"], ground_truth, valid, near, far,
        max_resolution=resolution, width_only_resize=True,
    )  # fmt: skip
    results[f"depth_scale_shift_maxres{resolution}"] = np.array([fit.scale, fit.shift])

    for name, positive_only in (("inv_posmask", True), ("inv_nomask", False)):
        depth, fit = align_inverse_depth(
            case.arrays["pred_inverse"], ground_truth, valid, near, far, positive_only=positive_only
        )
        results[f"{name}_scale_shift"] = np.array([fit.scale, fit.shift])
        results[f"{name}_metrics"] = measures(depth)
    return results
