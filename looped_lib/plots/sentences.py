"""What numbers say, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from looped_lib.core.html import escape_markdown

TOUR = {"fixed": "always 4 loops", "random": "random loops", "stars": "random loops, penalty, carried states"}
"""The tour's runs, by what they were trained with: STARS itself has no carried states."""


def size_note(preset: str, records: str, minutes: str) -> str:
    """At size smoke a warning in Markdown, with what to do for a result; at other sizes nothing.

    `records` is the folder of the recorded runs, as seen from a notebook; `minutes` what size cpu takes.
    """
    if preset != "smoke":
        return ""
    return (
        "**Smoke: nothing is learned at this size.** It shows that everything works; accuracies near 0 mean nothing. "
        f'For a result set `preset = "cpu"` ({minutes} on two cores) or look at [the recorded runs]({records}).'
    )


def tour_sentences(depths: Sequence[int], accuracy: Mapping[str, Sequence[float]], trained: int = 4) -> str:
    """Two sentences that say what the tour's numbers say, whatever they are: where the fixed model falls, what the third holds.

    `accuracy` (0 to 1 at each of `depths`, ascending) has the runs fixed, random and stars.
    """
    at = {name: dict(zip(depths, values, strict=True)) for name, values in accuracy.items()}
    last = depths[-1]
    first = min(trained, last)
    deeper = [d for d in depths if d >= first]
    fallen = next((d for d in deeper if at["fixed"][d] < at["fixed"][first] / 2), None)
    where = (
        f"it first falls below half of that at {fallen} loops"
        if fallen
        else f"it stays at half of that or more up to {last} loops"
    )
    worst = min(deeper, key=lambda d: at["stars"][d])

    def percent(name: str, depth: int) -> str:
        return f"{100 * at[name][depth]:.1f} %"

    return (
        f"The model trained at {trained} loops solves {percent('fixed', first)} of the held-out problems at {first} loops; "
        f"{where}, where it solves {percent('fixed', fallen or last)}. Over all loop counts from {first} to {last}, the model "
        f"with the penalty and carried states solves at least {percent('stars', worst)} (its lowest, at {worst} loops); "
        f"at {last} loops it solves {percent('stars', last)}, "
        f"random loops alone {percent('random', last)}."
    )


def dynamics_sentences(records: Mapping[str, Mapping[str, Any]], table: pd.DataFrame) -> str:
    """For each run one sentence: what became of its states, by which radius, and what stopping at rest costs.

    `records` and `table` as from `dynamics.dynamics` and `dynamics.dynamics_table`.
    """
    return " ".join(_one_run(name, record, table.loc[name]) for name, record in records.items())


def _one_run(name: str, record: Mapping[str, Any], row: pd.Series) -> str:
    total, n_loops = sum(record["class"].values()), record["n_loops"]
    kinds = " and ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in record["class"].items() if n)
    overflow = record["radius"] is None
    radius = "the state overflows" if overflow else f"the spectral radius at the last state is {record['radius']:.4f}"
    rate = "" if record["rate"] is None else f", the residual's own rate {record['rate']:.4f}"
    return (
        f"**{escape_markdown(name)}**: of {total} problems {kinds} within {n_loops} loops; {radius}{rate}. "
        f"Stopped at a tolerance of {row['exit tolerance']:g} it uses {row['mean loops']:.1f} loops a character "
        f"and solves {row['accuracy, %']:.1f} %."
    )
