"""Principal components of trajectories, fitted per problem or jointly, over problems and over runs, so that they share axes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.decomposition import PCA

from looped_lib.dynamics.trajectory import Trajectory


@dataclass(frozen=True)
class Projection:
    """States in the coordinates of their first principal components."""

    coordinates: Float[np.ndarray, "loop batch component"]
    """Position of each sequence after each loop, in units of the state."""
    explained: Float[np.ndarray, "component"]
    """Share of the variance along each component, 0 to 1, over all states that the components were fitted to."""
    loops: Int[np.ndarray, "loop"]
    """Loop count of each position."""


def project(path: Trajectory, components: int = 2, token: int | None = None) -> Projection:
    """PCA over all loops and sequences of one trajectory. For axes per problem, project `path.problem(i)`."""
    return project_jointly({"": path}, components, token)[""]


def project_jointly(paths: Mapping[str, Trajectory], components: int = 2, token: int | None = None) -> dict[str, Projection]:
    """PCA over all loops and sequences of all trajectories together: their coordinates can be compared.

    A point is the whole state (all positions flattened), or the state of one `token` position. ValueError if the
    trajectories differ in width (or, for whole states, in length), if there are fewer states than components, or if a
    state is not finite.
    """
    points = {name: _points(path, token, name) for name, path in paths.items()}
    widths = {name: p.shape[1] for name, p in points.items()}
    if len(set(widths.values())) != 1:
        raise ValueError(f"trajectories of different sizes cannot share axes: entries a state {widths}")
    every = np.concatenate(list(points.values()))
    if len(every) <= components:
        raise ValueError(f"{components} components need more than {components} states, got {len(every)}: take more loops")
    if not np.ptp(every, axis=0).any():  # at rest from the start: one point, and nothing to explain
        still = {n: np.zeros((*paths[n].states.shape[:2], components)) for n in points}
        return {n: Projection(x, np.zeros(components), paths[n].loops.numpy()) for n, x in still.items()}
    # ARPACK: exact like the full decomposition, and three times as fast on a hundred states of ten thousand entries. It cannot
    # give all components there are, and needs a fixed start to repeat itself.
    solver = "arpack" if components < min(every.shape) else "full"
    pca = PCA(components, svd_solver=solver, random_state=0).fit(every)
    return {
        name: Projection(
            pca.transform(p).reshape(*paths[name].states.shape[:2], components),
            pca.explained_variance_ratio_,
            paths[name].loops.numpy(),
        )
        for name, p in points.items()
    }


def _points(path: Trajectory, token: int | None, name: str) -> Float[np.ndarray, "point entry"]:
    states = path.states.flatten(2) if token is None else path.states[:, :, token]
    finite = states.isfinite().flatten(1).all(1)
    if not finite.all():
        loop = int(path.loops[~finite][0])
        raise ValueError(f"{name or 'the trajectory'} is not finite from loop {loop} on: look at fewer loops")
    return states.double().cpu().flatten(0, 1).numpy()
