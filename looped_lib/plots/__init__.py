"""Figures: tidy data in, plotly Figures out."""

from looped_lib.plots.curves import accuracy_by_depth, loss_by_step, residual_by_depth, state_norm_by_depth
from looped_lib.plots.paths import pca_trajectories
from looped_lib.plots.sentences import tour_sentences

__all__ = [
    "accuracy_by_depth",
    "loss_by_step",
    "pca_trajectories",
    "residual_by_depth",
    "state_norm_by_depth",
    "tour_sentences",
]
