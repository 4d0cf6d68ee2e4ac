"""A study: one notebook, the parameters it is run with, and the seeds, in three sizes. A small YAML file says it:

    about: Where the norm stands
    notebook: 01_norm_placement
    set: {max_depth: 100}                             # the same in every run
    grid:                                             # every combination; a list of grids runs one after the other
      norm_placement: [pre_norm, post_norm]
      norm_type: [LayerNorm, RMSNorm]
    seeds: [0, 1, 2]
    sizes:                                            # what differs by size, beside the preset: seeds, set, grid
      smoke: {seeds: [0], set: {max_depth: 12}}

or a Python file that ends with STUDY = Study(...), which is a program: it runs as you, with all that you may do. Those of the
project lie in looped_lib/studies/. Whatever is wrong in a study (a parameter that the notebook does not have, a value of another
type, a value that the study's configs refuse) is one StudyError that names file, line and field, before anything runs.
"""

import itertools
import math
import runpy
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from looped_lib.core.project import find_root, runs_folder
from looped_lib.runs.experiment import check_depth
from looped_lib.studies.batch import is_of_type, parameter_types
from looped_lib.studies.paper import NOTEBOOKS, PRESETS, configs
from looped_lib.studies.sizes import Configs
from looped_lib.studies.study_file import StudyError, read_study

FOLDER = Path(__file__).parent
FIELDS = ("about", "notebook", "set", "grid", "seeds", "sizes")
RESERVED = {"preset": "the size sets it", "seed": "list them under seeds", "out": "it is the run's folder"}
LONGEST_NAME = 255  # of a folder
MOST_RUNS = 10_000  # of a size

Parameters = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What to run. `check` before use; `load` does."""

    name: str
    """Of the folder under runs/."""
    about: str
    """The question, in a sentence."""
    notebook: Path
    """What is run."""
    grid: tuple[Mapping[str, Sequence[Any]], ...] = ({},)
    """Tables of values: every combination within a table is run."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Parameters that all runs share."""
    seeds: tuple[int, ...] = (0,)
    """Every combination is run with each; the first seed of all of them comes first."""
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By preset: other `seeds`, another `grid`, and a `set` that goes over the study's."""
    file: str = ""
    """Where it was read, for errors."""
    lines: Mapping[str, int] = field(default_factory=dict)
    """Line of each field in that file."""

    def runs(self, size: str, seeds: Sequence[int] | None = None) -> dict[str, Parameters]:
        """{run name: parameters} of a size, for its own seeds or those given.

        A run is named after what varies (`norm_placement=pre_norm,seed=0`), so that equal names mean equal runs.
        """
        sized = self.sizes.get(size, {})
        shared = {"preset": size, **self.set, **sized.get("set", {})}
        runs = {}
        for seed in seeds if seeds is not None else sized.get("seeds", self.seeds):
            for table in sized.get("grid", self.grid):
                for values in itertools.product(*table.values()):
                    varied = {**dict(zip(table, values, strict=True)), "seed": seed}
                    runs[",".join(f"{k}={quote(str(v), safe='')}" for k, v in varied.items())] = {**shared, **varied}
        return runs

    def check(self) -> "Study":
        """This study; StudyError if it is invalid."""
        if not self.name or self.name.startswith(".") or "/" in self.name:
            raise StudyError(f"{self.file or self.name}: a study is named after its file, and {self.name!r} cannot name a folder")
        known = self._parameters()
        if missing := {"preset", "seed", "out"} - set(known):
            raise self._wrong("notebook", f"{self.notebook.name} has no parameter {', '.join(sorted(missing))}: a study sets it")
        self._check_grid("grid", self.grid, known)
        self._check_set("set", self.set, self.grid, known)
        self._check_seeds("seeds", self.seeds)
        for size, sized in self.sizes.items():
            where = f"sizes.{size}"
            if size not in PRESETS:
                raise self._wrong(where, f"unknown size; there are {', '.join(PRESETS)}")
            if unknown := set(sized) - {"seeds", "set", "grid"}:
                raise self._wrong(f"{where}.{min(unknown)}", "a size has seeds, set and grid, no more")
            grid = sized.get("grid", self.grid)
            self._check_grid(f"{where}.grid", grid, known)
            self._check_set("set", self.set, grid, known)
            self._check_set(f"{where}.set", sized.get("set", {}), grid, known)
            self._check_seeds(f"{where}.seeds", sized.get("seeds", [0]))
        for size in PRESETS:
            seeds = self.sizes.get(size, {}).get("seeds", self.seeds)
            if (n := len(seeds) * sum(math.prod(map(len, table.values())) for table in self.grid)) > MOST_RUNS:
                raise self._wrong("grid", f"has {n} runs, more than {MOST_RUNS}")
            names = self.runs(size)
            if long := [name for name in names if len(name) > LONGEST_NAME]:
                raise self._wrong("grid", f"the name of a run has more than {LONGEST_NAME} letters: {long[0]}")
            grid = self.sizes.get(size, {}).get("grid", self.grid)
            tables = [dict(zip(t, v, strict=True)) for t in grid for v in itertools.product(*t.values())]
            if len(names) < len(tables) * len({p["seed"] for p in names.values()}):
                raise self._wrong("grid", "two of its tables hold the same run")
        return self

    def _parameters(self) -> dict[str, str]:
        """Types of the notebook's parameters."""
        try:
            return parameter_types(self.notebook)
        except ValueError as e:
            raise self._wrong("notebook", str(e)) from None

    def configs(self, parameters: Parameters) -> Configs:
        """What a run with these parameters trains, by name; nothing where it is not known what the notebook trains."""
        ours = self.notebook.resolve() == _ours(self.notebook.name)  # a copy elsewhere may have been changed
        return configs(self.notebook.stem, parameters) if ours and self.notebook.stem in NOTEBOOKS else {}

    def check_configs(self, size: str, seeds: Sequence[int] | None = None) -> None:
        """StudyError if a run of this size, with its own seeds or those given, is one that its notebook would refuse; also where
        the size does not exist for it."""
        if size not in PRESETS:
            raise StudyError(f"size must be one of {', '.join(PRESETS)}, got {size!r}")
        if seeds is not None and (wrong := _wrong_seeds(seeds)):
            raise StudyError(f"seeds {wrong}")
        for name, parameters in self.runs(size, seeds).items():
            try:
                if "max_depth" in parameters:
                    check_depth(parameters["max_depth"])
                self.configs(parameters)
            except ValueError as e:
                raise StudyError(f"{self.file or self.name}, run {name}: {e}") from None

    def _check_grid(self, where: str, grid: Any, known: Mapping[str, str]) -> None:
        if not isinstance(grid, list | tuple) or not all(isinstance(table, Mapping) for table in grid):
            raise self._wrong(where, f"must be a tuple of mappings, got {grid!r}")
        for i, table in enumerate(grid):
            self._check_values(where if len(grid) == 1 else f"{where}[{i}]", table, known)

    def _check_set(self, where: str, values: Mapping[str, Any], grid: Any, known: Mapping[str, str]) -> None:
        self._check_values(where, {name: [value] for name, value in values.items()}, known)
        if both := [name for name in values if any(name in table for table in grid)]:
            raise self._wrong(f"{where}.{both[0]}", "the grid varies it: give it in one of the two places")

    def _check_values(self, where: str, table: Mapping[str, Sequence[Any]], known: Mapping[str, str]) -> None:
        for name, values in table.items():
            here = f"{where}.{name}"
            if name in RESERVED:
                raise self._wrong(here, RESERVED[name])
            if name not in known:
                raise self._wrong(here, f"{self.notebook.name} has no parameter {name}; it has {', '.join(known)}")
            if not isinstance(values, list | tuple):
                raise self._wrong(here, f"must be a list of values, got {values!r}")
            if not values or len({str(v) for v in values}) < len(values):
                raise self._wrong(here, f"needs one or more different values, got {list(values)}")
            for value in values:
                if not is_of_type(value, known[name]):
                    raise self._wrong(here, f"must be {known[name]}, got {value!r}")

    def _check_seeds(self, where: str, seeds: Any) -> None:
        if wrong := _wrong_seeds(seeds):
            raise self._wrong(where, wrong)

    def _wrong(self, where: str, what: str) -> StudyError:
        line = self.lines.get(where) or self.lines.get(where.rpartition(".")[0])
        place = f"{self.file}, line {line}" if line else self.file or self.name
        return StudyError(f"{place}: {where}: {what}")


def _wrong_seeds(seeds: Any) -> str:
    """What is wrong with seeds, or nothing."""
    whole = isinstance(seeds, list | tuple) and all(isinstance(s, int) and not isinstance(s, bool) for s in seeds)
    if whole and seeds and min(seeds) >= 0 and len(set(seeds)) == len(seeds):
        return ""
    return f"must be a list of different whole numbers, 0 or more, got {seeds!r}"


def shipped() -> list[str]:
    """Names of the project's studies."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(study: str | Path) -> Study:
    """The study of that name among the project's, or in that file (.yaml or .py), checked."""
    path = FOLDER / f"{study}.yaml" if str(study) in shipped() else Path(study)
    if path.suffix not in (".yaml", ".yml", ".py") or not path.is_file():
        raise StudyError(f"no study {study}: give a .yaml or .py file, or one of {', '.join(shipped())}")
    if path.suffix == ".py":
        try:
            found = runpy.run_path(str(path)).get("STUDY")
        except Exception as e:  # whatever it is, it is the file's
            lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == str(path)]
            line = e.lineno if isinstance(e, SyntaxError) else lines[-1] if lines else 1
            raise StudyError(f"{path}, line {line}: {type(e).__name__}: {e}") from None
        if not isinstance(found, Study):
            raise StudyError(f"{path}: must end with STUDY = Study(...), STUDY is {found!r}")
        return replace(found, file=str(path)).check()
    return _from_yaml(path).check()


def _from_yaml(path: Path) -> Study:
    values, lines = read_study(path)
    if not isinstance(values, dict):
        raise StudyError(f"{path}, line 1: a study is a mapping of {', '.join(FIELDS)}")
    if wrong := _wrong_shape(values):
        where, what = wrong
        raise StudyError(f"{path}, line {lines.get(where, 1)}: {where}: {what}")
    beside = path.resolve().parent / values["notebook"]
    notebook = beside if beside.is_file() else _ours(values["notebook"])
    if notebook is None:
        if path.parent == FOLDER:
            find_root()  # which says that the project's notebooks are not installed with the library
        name, line = values["notebook"], lines["notebook"]
        raise StudyError(f"{path}, line {line}: notebook: there is no {beside}, and no {name} among the project's")
    return Study(
        name=path.stem,
        about=values["about"],
        notebook=notebook,
        grid=_grid(values),
        set=values.get("set", {}),
        seeds=values.get("seeds", (0,)),
        sizes={size: s | ({"grid": _grid(s)} if "grid" in s else {}) for size, s in values.get("sizes", {}).items()},
        file=str(path),
        lines=lines,
    )


def _wrong_shape(values: dict[str, Any]) -> tuple[str, str] | None:
    """A field that is not of the kind a study has there, and what is wrong with it."""
    if unknown := [name for name in values if name not in FIELDS]:
        return unknown[0], f"unknown field; a study has {', '.join(FIELDS)}"
    for name in ("about", "notebook"):
        if not isinstance(values.get(name), str):
            return name, "must be text" if name in values else "is missing"
    for name in ("set", "sizes"):
        if not isinstance(values.get(name, {}), dict):
            return name, "must be a mapping"
    for size, sized in values.get("sizes", {}).items():
        if not isinstance(sized, dict) or not isinstance(sized.get("set", {}), dict):
            return f"sizes.{size}", "must be a mapping of seeds, set and grid"
    sizes = {f"sizes.{size}.grid": sized for size, sized in values.get("sizes", {}).items()}
    for where, holder in {"grid": values, **sizes}.items():
        if not _tables(holder) or not all(isinstance(table, dict) for table in _tables(holder)):
            return where, "must be a mapping of names to values, or a list of such mappings"
    return None


def _grid(values: dict[str, Any]) -> tuple[dict[str, list[Any]], ...]:
    """The tables under `grid`; a single value is a list of one."""
    return tuple({k: v if isinstance(v, list) else [v] for k, v in table.items()} for table in _tables(values))


def _tables(values: dict[str, Any]) -> list[Any]:
    """One table or several under `grid`."""
    grid = values.get("grid", {})
    return grid if isinstance(grid, list) else [grid]


def _ours(name: str) -> Path | None:
    """The notebook of that name among the project's, if there is one, and a project."""
    notebooks = runs_folder().resolve().parent / "notebooks"
    return next((path for path in notebooks.glob("*.ipynb") if name in (path.name, path.stem)), None)
