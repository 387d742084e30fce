"""Proof that this code computes what the published implementations compute.

A fixture is ``<system>/<case>.json`` with ``<case>.npz`` beside it: inputs, noise and outputs of a published
implementation whose every parameter was filled from its name, shape and a seed (:mod:`.recipe`), so that no
trained weight is needed. ``vision3d parity DIR`` (:mod:`.runner`) finds the fixtures, hands each to the check
of its system and kind, and compares what comes back with what is stored (:mod:`.compare`), never more loosely
than the fixture states.

To cover a new kind, write one function in the module named after the system::

    @check("primedepth", "attn_maps", options=("q", "k", "size"))
    def attention_maps(case: Case) -> dict[str, Any]:
        return {name: pooled(case.arrays[o["q"]], case.arrays[o["k"]], o["size"]) for name, o in
        case.outputs.items()}

A check returns whole tensors by name; slicing, statistics and tolerances are the comparison's business. It
reads everything from the case it is given and never asks which case that is.
"""

from vision3d.evaluation.parity.case import Case
from vision3d.evaluation.parity.registry import check

__all__ = ["Case", "check"]
