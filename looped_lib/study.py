"""A study: one notebook, the parameters it is run with, and the seeds, in three sizes. A small YAML file says it:

    about: Where the norm stands
    notebook: 01_norm_placement
    set: {max_depth: 100}                             # the same in every run
    grid:                                             # every combination; a list of grids runs one after the other
      norm_placement: [pre_norm, post_norm]
      norm_type: [LayerNorm, RMSNorm]
    seeds: [0, 1, 2]
    sizes:                                            # what differs by size, beside the preset
      smoke: {seeds: [0], set: {max_depth: 12}}

or a Python file that ends with STUDY = Study(...). Those of the project lie in looped_lib/studies/. Whatever is wrong in it (a
parameter that the notebook does not have, a value of another type, a value that the study's configs refuse) is one StudyError
that names file, line and field, before anything runs.
"""

import itertools
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import papermill
import yaml

from looped_lib.presets import CONFIGS, PRESETS
from looped_lib.runs import find_root
from looped_lib.sizes import Configs

FOLDER = Path(__file__).parent / "studies"
FIELDS = ("about", "notebook", "set", "grid", "seeds", "sizes")
RESERVED = {"preset": "the size sets it", "seed": "list them under seeds", "out": "it is the run's folder"}
_TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool}

Parameters = dict[str, Any]


class StudyError(ValueError):
    """A study that cannot be meant."""


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
    """By preset: other `seeds`, and a `set` that goes over the study's."""
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
            for table in self.grid:
                for values in itertools.product(*table.values()):
                    varied = {**dict(zip(table, values, strict=True)), "seed": seed}
                    runs[",".join(f"{k}={quote(str(v), safe='')}" for k, v in varied.items())] = {**shared, **varied}
        return runs

    def check(self) -> "Study":
        """This study; StudyError on what cannot be meant."""
        if not self.notebook.is_file():
            raise self._wrong("notebook", f"{self.notebook} is missing")
        known = papermill.inspect_notebook(str(self.notebook))
        if missing := {"preset", "seed", "out"} - set(known):
            raise self._wrong("notebook", f"{self.notebook.name} has no parameter {', '.join(sorted(missing))}: a study sets it")
        self._check_values("set", {name: [value] for name, value in self.set.items()}, known)
        for i, table in enumerate(self.grid):
            self._check_values("grid" if len(self.grid) == 1 else f"grid[{i}]", table, known)
        self._check_seeds("seeds", self.seeds)
        for size, sized in self.sizes.items():
            where = f"sizes.{size}"
            if size not in PRESETS:
                raise self._wrong(where, f"unknown size; there are {', '.join(PRESETS)}")
            if unknown := set(sized) - {"seeds", "set"}:
                raise self._wrong(f"{where}.{min(unknown)}", "a size has seeds and set, no more")
            self._check_values(f"{where}.set", {name: [value] for name, value in sized.get("set", {}).items()}, known)
            self._check_seeds(f"{where}.seeds", sized.get("seeds", [0]))
        for size in PRESETS:
            names = self.runs(size)
            tables = [dict(zip(t, v, strict=True)) for t in self.grid for v in itertools.product(*t.values())]
            if len(names) < len(tables) * len({p["seed"] for p in names.values()}):
                raise self._wrong("grid", "two of its tables hold the same run")
        return self

    def configs(self, parameters: Parameters) -> Configs:
        """What a run with these parameters trains, by name; nothing where it is not known what the notebook trains."""
        make = CONFIGS.get(self.notebook.stem)
        return make(**{k: v for k, v in parameters.items() if k != "max_depth"}) if make else {}

    def check_configs(self, size: str) -> None:
        """StudyError if a run of this size is one that its notebook would refuse; also where the size does not exist for it."""
        if size not in PRESETS:
            raise StudyError(f"size must be one of {', '.join(PRESETS)}, got {size!r}")
        for name, parameters in self.runs(size).items():
            try:
                self.configs(parameters)
            except ValueError as e:
                raise StudyError(f"{self.file or self.name}, run {name}: {e}") from None

    def _check_values(self, where: str, table: Mapping[str, Sequence[Any]], known: Mapping[str, Any]) -> None:
        for name, values in table.items():
            here = f"{where}.{name}"
            if name in RESERVED:
                raise self._wrong(here, RESERVED[name])
            if name not in known:
                raise self._wrong(here, f"{self.notebook.name} has no parameter {name}; it has {', '.join(known)}")
            if not values or len({str(v) for v in values}) < len(values):
                raise self._wrong(here, f"needs one or more different values, got {list(values)}")
            kind = known[name]["inferred_type_name"]
            for value in values:
                if kind in _TYPES and (not isinstance(value, _TYPES[kind]) or isinstance(value, bool) != (kind == "bool")):
                    raise self._wrong(here, f"must be {kind}, got {value!r}")

    def _check_seeds(self, where: str, seeds: Any) -> None:
        whole = isinstance(seeds, list | tuple) and all(isinstance(s, int) and not isinstance(s, bool) for s in seeds)
        if not whole or not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise self._wrong(where, f"must be a list of different whole numbers, 0 or more, got {seeds!r}")

    def _wrong(self, where: str, what: str) -> StudyError:
        line = self.lines.get(where) or self.lines.get(where.rpartition(".")[0])
        place = f"{self.file}, line {line}" if line else self.file or self.name
        return StudyError(f"{place}: {where}: {what}")


def shipped() -> list[str]:
    """Names of the project's studies."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(study: str | Path) -> Study:
    """The study of that name among the project's, or in that file (.yaml or .py), checked."""
    path = FOLDER / f"{study}.yaml" if str(study) in shipped() else Path(study)
    if path.suffix not in (".yaml", ".yml", ".py") or not path.is_file():
        raise StudyError(f"no study {study}: give a .yaml or .py file, or one of {', '.join(shipped())}")
    if path.suffix == ".py":
        found = runpy.run_path(str(path)).get("STUDY")
        if not isinstance(found, Study):
            raise StudyError(f"{path}: must end with STUDY = Study(...), STUDY is {found!r}")
        return replace(found, file=str(path)).check()
    return _from_yaml(path).check()


def _from_yaml(path: Path) -> Study:
    text = path.read_text(encoding="utf-8")
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as e:
        raise StudyError(f"{path}, line {e.problem_mark.line + 1 if e.problem_mark else 1}: {e.problem}") from None
    lines = dict(_lines(node)) if node else {}

    def fail(where: str, what: str) -> StudyError:
        return StudyError(f"{path}, line {lines.get(where, 1)}: {where}: {what}")

    if not isinstance(values, dict):
        raise StudyError(f"{path}, line 1: a study is a table of {', '.join(FIELDS)}")
    if unknown := [name for name in values if name not in FIELDS]:
        raise fail(unknown[0], f"unknown field; a study has {', '.join(FIELDS)}")
    for name in ("about", "notebook"):
        if not isinstance(values.get(name), str):
            raise fail(name, "must be a text" if name in values else "is missing")
    for name in ("set", "sizes"):
        if not isinstance(values.get(name, {}), dict):
            raise fail(name, "must be a table")
    tables = values.get("grid", {})
    tables = tables if isinstance(tables, list) else [tables]
    if not tables or not all(isinstance(table, dict) for table in tables):
        raise fail("grid", "must be a table of values, or a list of such tables")
    for size, sized in values.get("sizes", {}).items():
        if not isinstance(sized, dict) or not isinstance(sized.get("set", {}), dict):
            raise fail(f"sizes.{size}", "must be a table of seeds and set")
    return Study(
        name=path.stem,
        about=values["about"],
        notebook=_notebook(values["notebook"], path),
        grid=tuple({k: v if isinstance(v, list) else [v] for k, v in table.items()} for table in tables),
        set=values.get("set", {}),
        seeds=values.get("seeds", (0,)),
        sizes=values.get("sizes", {}),
        file=str(path),
        lines=lines,
    )


def _notebook(name: str, path: Path) -> Path:
    """A notebook by its file, beside the study's, or by its name among the project's."""
    beside = path.parent / name
    return beside if beside.is_file() else find_root() / "notebooks" / f"{name.removesuffix('.ipynb')}.ipynb"


def _lines(node: yaml.Node, where: str = "") -> Any:
    """(field, line) of every field below `node`."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = f"{where}.{key.value}" if where else str(key.value)
            yield here, key.start_mark.line + 1
            yield from _lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield f"{where}[{i}]", value.start_mark.line + 1
            yield from _lines(value, f"{where}[{i}]")
