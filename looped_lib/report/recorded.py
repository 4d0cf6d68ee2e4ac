"""The results page of the repository: runs/recorded/REPORT.md and its figures, drawn from the records alone.

A code host shows the page, and the notebooks show the figures under "What we saw". `figures.json` has of each picture a
checksum of what it shows and of its file, so that a test finds what is stale without drawing anything.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from looped_lib.core.files import read_json, replacing, write_json
from looped_lib.plots import curves
from looped_lib.plots.bands import accuracy_bands
from looped_lib.plots.sentences import TOUR
from looped_lib.report.evidence import Evidence
from looped_lib.report.export import save_figures
from looped_lib.report.page import markdown
from looped_lib.report.pictures import pictures
from looped_lib.samplers import TRAINED_DEPTH
from looped_lib.studies.paper import tour

SIZE = "cpu"
FIGURES = "figures"  # folder beside claims.json, and the list in it
PLACES = {
    "4.1": ("placement_accuracy", "placement_state_norm"),
    "4.2": ("distribution_accuracy",),
    "4.3": ("tour", "penalty_accuracy", "exits"),
    "5": ("ouro_tiny",),
    "beyond": ("seeds", "recipe_accuracy"),
}


def shown(recorded: Path) -> dict[str, go.Figure]:
    """The figures of the page by name, from the records in `recorded`."""
    evidence = Evidence(recorded)
    drawn = {name: figure for part in pictures(evidence, SIZE).values() for name, figure in part.items()}
    result, walked = read_json(recorded / "tour" / "result.json"), evidence.dynamics(SIZE)["runs"]
    named = {TOUR[name]: values for name, values in result["accuracy"].items()}
    exits = {TOUR[n]: tuple(r["exit"][k] for k in ("tolerance", "mean_loops", "accuracy")) for n, r in walked.items()}
    five = evidence.curves({TOUR[name]: config for name, config in tour(SIZE).items()}, 200)
    drawn |= {
        "tour": curves.accuracy_by_depth(result["depths"], named, trained=TRAINED_DEPTH).update_layout(legend=_BELOW),
        "exits": curves.exit_tradeoff(exits).update_layout(legend=_BELOW),
        "seeds": accuracy_bands(five, "The three models of the tour, over seeds"),
    }
    return {name: drawn[name] for names in PLACES.values() for name in names}


def write(recorded: Path, rows: list[dict[str, Any]]) -> Path:
    """Write the page, the figures and claims.json; returns the page. NoBrowser if there is none to draw with."""
    folder = recorded / "report" / FIGURES
    figures = shown(recorded)
    save_figures(figures, folder, kinds=("png",), scale=1)
    write_json(recorded / "report" / "claims.json", rows)
    write_json(folder / "figures.json", {name: [checksum(f), _of_file(folder / f"{name}.png")] for name, f in figures.items()})
    with replacing(recorded / "REPORT.md") as partial:
        partial.write_text(page(rows), encoding="utf-8")
    return recorded / "REPORT.md"


def page(rows: list[dict[str, Any]]) -> str:
    """The text of the page."""
    return markdown(rows, SIZE, {s: [f"report/{FIGURES}/{name}.png" for name in names] for s, names in PLACES.items()})


def stale(recorded: Path) -> list[str]:
    """The figures that do not show what the records say."""
    folder = recorded / "report" / FIGURES
    kept: Mapping[str, list[str]] = read_json(folder / "figures.json")
    return [n for n, f in shown(recorded).items() if kept.get(n) != [checksum(f), _of_file(folder / f"{n}.png")]]


def checksum(figure: go.Figure) -> str:
    """Of what a figure shows: its traces' names and numbers, and its title."""
    traces = [[t.name, _numbers(t.x), _numbers(t.y)] for t in figure.data]
    return hashlib.sha256(json.dumps([figure.layout.title.text, traces]).encode()).hexdigest()[:16]


def _numbers(values: Any) -> list[str]:
    return [f"{float(v):.6g}" for v in values if v is not None] if values is not None else []


def _of_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else ""


_BELOW = {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"}
