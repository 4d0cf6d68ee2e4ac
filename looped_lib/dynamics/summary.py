"""A run's dynamics in numbers: what becomes of its states, how fast, by which eigenvalues, and what stopping at rest gives."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from looped_lib.dynamics import spectrum
from looped_lib.dynamics.exits import exit_curve
from looped_lib.dynamics.fixed_points import KINDS, contraction_rate, fate
from looped_lib.dynamics.trajectory import Trajectory
from looped_lib.models.state import loop_at
from looped_lib.tasks.problems import Problems, alike

TOLERANCES = (0.5, 0.3, 0.2, 0.1, 0.03, 0.01, 1e-3, 1e-4)


def dynamics(
    model: nn.Module, problems: Problems, n_problems: int = 8, n_loops: int = 10_000, max_depth: int = 100, progress: bool = False
) -> dict[str, Any]:
    """What notebook 04 records of a run, ready for JSON.

    class     how many of `n_problems` problems (of one length) converge, cycle, drift or blow up within `n_loops` loops
    n_loops   loops it took to tell; exact: whether their states came back bit for bit
    radius    spectral radius of J at the last state, median over these problems (radius_max: greatest); null where not finite
    rate      contraction per loop from the residual's slope, median over them; null where nothing contracts measurably
    exit      over all problems, for each tolerance: mean loops a character (at most `max_depth`) and accuracy
    """
    found = fate(model, alike(problems, n_problems).inputs, n_loops, progress=progress)
    finite = found.state.isfinite().flatten(1).all(1)
    radius = spectrum.radius(*loop_at(model, found.state[finite])) if finite.any() else torch.tensor([torch.nan])
    curve = exit_curve(model, problems, TOLERANCES, max_depth, progress=progress)
    return {
        "class": {kind: Counter(found.kind)[kind] for kind in KINDS},
        "n_loops": found.n_loops,
        "exact": found.exact,
        "radius": _number(radius.median()),
        "radius_max": _number(radius.max()),
        "rate": _number(contraction_rate(found.residual).nanmedian()),
        "exit": {
            "tolerance": list(TOLERANCES),
            "mean_loops": curve.mean_loops.tolist(),
            "accuracy": curve.accuracy.tolist(),
        },
    }


def dynamics_table(records: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """One row per run: its classes in words, radius, rate, and the cheapest exit within 0.1 point of its deepest accuracy."""
    rows = {}
    for name, r in records.items():
        kinds = ", ".join(f"{n} {kind}" for kind, n in r["class"].items() if n)
        row = {"problems": kinds, "decided after loops": r["n_loops"], "radius": r["radius"], "rate": r["rate"]}
        steps = zip(r["exit"]["tolerance"], r["exit"]["mean_loops"], r["exit"]["accuracy"], strict=True)
        deepest = r["exit"]["accuracy"][-1]
        tolerance, loops, accuracy = min((s for s in steps if s[2] >= deepest - 1e-3), key=lambda s: s[1])
        rows[name] = row | {"exit tolerance": tolerance, "mean loops": loops, "accuracy, %": 100 * accuracy}
    digits = {"radius": 4, "rate": 4, "mean loops": 2, "accuracy, %": 1}
    return pd.DataFrame.from_dict(rows, orient="index").round(digits).rename_axis("run")


def spectra(model: nn.Module, path: Trajectory, loops: Sequence[int]) -> dict[int, Complex[Tensor, "seq d_model"]]:
    """All eigenvalues of J at the states of the first sequence of `path` after each of `loops`, in one batch."""
    return dict(zip(loops, spectrum.eigenvalues(*loop_at(model.eval(), _states(path, loops))), strict=True))


def gains(model: nn.Module, path: Trajectory, loops: Sequence[int]) -> dict[str, list[float]]:
    """What one loop does to a small difference, at the states of the first sequence of `path` after each of `loops`.

    radius     rho(J): the factor per loop in the end, if J stayed as it is
    sigma_max  the greatest factor in one loop, over all directions
    rms        ||J||_F / sqrt(N): the root mean square factor, over all directions
    """
    states = _states(path, loops)
    step, h = loop_at(model.eval(), states)
    rms = (spectrum.exact_squared_fro(step, h) / h[0].numel()).sqrt()
    sigma_max = torch.cat(
        [spectrum.lanczos_norm(*loop_at(model, row[None])) for row in states]
    )  # its products are of one row each
    return {"radius": spectrum.radius(step, h).tolist(), "sigma_max": sigma_max.tolist(), "rms": rms.tolist()}


def spectrum_loops(max_depth: int) -> list[int]:
    """The loop counts at which a trajectory's spectrum is worth its price: 1, 2, 4, ... and max_depth (at least 1)."""
    if max_depth < 1:
        raise ValueError(f"max_depth must be at least 1 loop, got {max_depth}")
    return sorted({*(2**k for k in range(max_depth.bit_length())), max_depth})


def _states(path: Trajectory, loops: Sequence[int]) -> Float[Tensor, "loop seq width"]:
    """Those of the first sequence after each of `loops`: a batch."""
    h = path.states[[path.loops.tolist().index(t) for t in loops], 0]
    return torch.cat([h, path.held[0].to(h).expand(len(h), -1, -1)], dim=-1)


def _number(x: Float[Tensor, ""]) -> float | None:
    return float(x) if x.isfinite() else None
