"""Figures: tidy data in, plotly Figures out."""

from looped_lib.plots.bands import accuracy_bands, loss_bands, residual_bands, state_norm_bands
from looped_lib.plots.benchmarks import benchmarks, drop_from_peak
from looped_lib.plots.curves import (
    accuracy_by_depth,
    exit_tradeoff,
    loss_by_step,
    movement,
    residual_by_depth,
    state_norm_by_depth,
)
from looped_lib.plots.finetuning import finetuning
from looped_lib.plots.heatmaps import heatmaps
from looped_lib.plots.loop_counts import loop_counts
from looped_lib.plots.paths import pca_trajectories, shared_trajectories
from looped_lib.plots.sentences import dynamics_sentences, tour_sentences
from looped_lib.plots.spectra import eigenvalue_cloud, gains_by_loop
from looped_lib.plots.style import not_run
from looped_lib.plots.walk import Walk, walk_figure, walk_slider

__all__ = [
    "Walk",
    "accuracy_bands",
    "accuracy_by_depth",
    "benchmarks",
    "drop_from_peak",
    "dynamics_sentences",
    "eigenvalue_cloud",
    "exit_tradeoff",
    "finetuning",
    "gains_by_loop",
    "heatmaps",
    "loop_counts",
    "loss_bands",
    "loss_by_step",
    "movement",
    "not_run",
    "pca_trajectories",
    "residual_bands",
    "residual_by_depth",
    "shared_trajectories",
    "state_norm_bands",
    "state_norm_by_depth",
    "tour_sentences",
    "walk_figure",
    "walk_slider",
]
