"""The report's figures, by name, each from run folders alone. What was not run says so."""

import pandas as pd
import plotly.graph_objects as go

from looped_lib.plots.bands import accuracy_bands, loss_bands, residual_bands, state_norm_bands
from looped_lib.plots.loop_counts import loop_counts
from looped_lib.report.claims_recipes import DEPTHS
from looped_lib.report.evidence import Evidence
from looped_lib.report.experiments import TYPES, distributions, estimators, gradients, inputs, placements, recipes
from looped_lib.report.figures import beside_paper, gains
from looped_lib.report.measures import DEEPEST
from looped_lib.studies.paper import norm_study, only
from looped_lib.studies.sizes import Configs, base

MODES = ("base", "sft", "random", "jsrr", "stars")
BLOCKS = {
    "no unlooped blocks": {},
    "a block before the loop": {"prelude": 1},
    "a block after it": {"coda": 1},
    "both": {"prelude": 1, "coda": 1},
}


def pictures(evidence: Evidence, size: str) -> dict[str, dict[str, go.Figure]]:
    """{section of the paper, or beyond: {file name: figure}}."""
    norms, penalties = placements(size), estimators(size)
    drawn = {name: config for name, config in distributions(size).items() if evidence.of(config)}
    curves, losses = evidence.curves, evidence.losses
    return {
        "4.1": {
            "placement_accuracy": accuracy_bands(curves(norms), "Where the norm stands: accuracy (trained at 4 loops)"),
            "placement_state_norm": state_norm_bands(curves(norms), "Where the norm stands: does the state grow?"),
            "placement_residual": residual_bands(curves(norms), "Where the norm stands: does the state settle?"),
            "placement_loss": loss_bands(losses(norms), "Where the norm stands: training"),
            "type_accuracy": accuracy_bands(_panels(evidence, _types(size)), "Which norm it is: accuracy, by placement"),
            "deepnorm_accuracy": accuracy_bands(curves(_deepnorms(size)), "DeepNorm: accuracy, by alpha"),
        },
        "4.2": {
            "distribution_accuracy": accuracy_bands(
                _panels(evidence, _blocks(size)), "Random loops: accuracy, by unlooped blocks"
            ),
            "l2_accuracy": accuracy_bands(_panels(evidence, _blocks(size, l2=True)), "Random loops and the L2 penalty: accuracy"),
            "distribution_loss": loss_bands(losses(distributions(size)), "Random loops: training"),
            "loop_counts": loop_counts(drawn),
        },
        "4.3": {
            "penalty_accuracy": accuracy_bands(_panels(evidence, _weights(size)), "Jacobian penalties: accuracy, by weight"),
            "penalty_residual": residual_bands(curves(penalties), "Jacobian penalties (w = 0.1): does the state settle?"),
            "penalty_loss": loss_bands(losses(penalties), "Jacobian penalties (w = 0.1): training"),
            "radius": gains(evidence.dynamics(size), "What one loop does to a small difference, in the models of the tour"),
        },
        "5": {
            "ouro_tiny": accuracy_bands(evidence.tuned_curves(size, MODES), "Tiny Ouro on word problems: accuracy"),
            "ouro_benchmarks": beside_paper(evidence.benchmarks()),
        },
        "beyond": {
            "input_accuracy": accuracy_bands(curves(inputs(size)), "Random loops with the input injected: accuracy"),
            "gradient_accuracy": accuracy_bands(curves(gradients(size)), "Random loops, gradients cut short: accuracy"),
            "recipe_accuracy": accuracy_bands(
                _panels(evidence, _digits(size), DEPTHS), "How deep does it hold? (to 10,000 loops)"
            ),
        },
    }


def _panels(evidence: Evidence, panels: dict[str, Configs], deepest: int = DEEPEST) -> pd.DataFrame:
    tables = [evidence.curves(groups, deepest).assign(panel=name) for name, groups in panels.items()]
    return pd.concat(tables, ignore_index=True)


def _types(size: str) -> dict[str, Configs]:
    deepnorm = {"post_norm": {"DeepNorm": only(norm_study(size, "post_norm", "DeepNorm"))}}
    return {
        place: {kind: only(norm_study(size, place, kind)) for kind in TYPES} | deepnorm.get(place, {})
        for place in placements(size)
    }


def _deepnorms(size: str) -> Configs:
    return {f"alpha {alpha:g}": only(norm_study(size, "post_norm", "DeepNorm", alpha)) for alpha in (1.0, 3.0, 10.0, 30.0)}


def _digits(size: str) -> dict[str, Configs]:
    return {f"{digits} digits": recipes(size, digits) for digits in sorted({base(size).data.digits, 4})}


def _weights(size: str) -> dict[str, Configs]:
    return {f"w = {weight:g}": estimators(size, weight) for weight in (0.1, 0.01)}


def _blocks(size: str, l2: bool = False) -> dict[str, Configs]:
    return {name: distributions(size, **blocks, l2=l2) for name, blocks in BLOCKS.items()}
