"""A study says what will run; whatever is wrong in it is one error that names file, line and field, before anything runs."""

import nbformat
import pytest

from looped_lib.studies.paper import NOTEBOOKS, PRESETS
from looped_lib.studies.study import FOLDER, Study, StudyError, load, shipped

GOOD = """\
about: Where the norm stands
notebook: 01_norm_placement
set: {max_depth: 9}
grid:
  - norm_placement: [pre_norm, post_norm]
    norm_type: LayerNorm
  - norm_type: DeepNorm
    norm_placement: post_norm
seeds: [0, 4]
sizes:
  smoke: {seeds: [7], set: {max_depth: 3}}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_runs_are_every_combination_the_first_seed_of_all_first(write):
    study = load(write(GOOD))
    runs = study.runs("cpu")
    assert list(runs) == [
        f"{setting},seed={seed}"
        for seed in (0, 4)
        for setting in (
            "norm_placement=pre_norm,norm_type=LayerNorm",
            "norm_placement=post_norm,norm_type=LayerNorm",
            "norm_type=DeepNorm,norm_placement=post_norm",
        )
    ]
    first = {"preset": "cpu", "max_depth": 9, "norm_placement": "pre_norm", "norm_type": "LayerNorm", "seed": 0}
    assert list(runs.values())[0] == first
    small = study.runs("smoke")
    assert len(small) == 3 and all(p["seed"] == 7 and p["max_depth"] == 3 and p["preset"] == "smoke" for p in small.values())
    assert {p["seed"] for p in study.runs("smoke", seeds=[1, 2]).values()} == {1, 2}


def test_a_size_may_have_a_grid_of_its_own(write):
    study = load(write(GOOD.replace("seeds: [7]", "grid: {norm_type: [RMSNorm, SimpleNorm], norm_placement: post_norm}")))
    assert len(study.runs("cpu")) == 6
    assert list(study.runs("smoke", [0])) == [f"norm_type={t},norm_placement=post_norm,seed=0" for t in ("RMSNorm", "SimpleNorm")]


def test_names_are_one_to_one(write):
    study = load(write(GOOD))
    odd = Study(name="x", about="", notebook=study.notebook, grid=({"norm_type": ["a/b", "a%2Fb", "..", "a,seed=1"]},))
    names = odd.runs("cpu")
    assert len(names) == 4 and not any("/" in name for name in names)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("about: Where the norm stands\n", "", "line 1: about: is missing"),
        (
            "notebook: 01_norm_placement",
            "notebook: 01_norm",
            "line 2: notebook: there is no .*01_norm, and no 01_norm among",
        ),
        ("norm_placement: [pre", "norm_placment: [pre", "line 5: grid.0..norm_placment: .*placement.ipynb has no parameter"),
        ("max_depth: 9", "max_depth: deep", "line 3: set.max_depth: must be int, got 'deep'"),
        ("max_depth: 9", "max_depth: true", "line 3: set.max_depth: must be int, got True"),
        ("max_depth: 9", "out: here", "line 3: set.out: it is the run's folder"),
        ("max_depth: 9", "preset: cpu", "line 3: set.preset: the size sets it"),
        ("norm_type: LayerNorm", "norm_type: []", "line 6: grid.0..norm_type: needs one or more different values"),
        ("pre_norm, post_norm", "post_norm, post_norm", "line 5: grid.0..norm_placement: needs one or more different values"),
        ("norm_type: DeepNorm", "norm_type: LayerNorm", None),
        ("seeds: [0, 4]", "seeds: [0, 0]", "line 9: seeds: must be a list of different whole numbers"),
        ("seeds: [0, 4]", "seeds: 3", "line 9: seeds: must be a list of different whole numbers"),
        ("seeds: [0, 4]", "sedes: [0, 4]", "line 9: sedes: unknown field; a study has about, notebook, set, grid, seeds, sizes"),
        ("smoke:", "small:", "line 11: sizes.small: unknown size; there are smoke, cpu, narrow, paper"),
        ("seeds: [7]", "jobs: 7", "line 11: sizes.smoke.jobs: a size has seeds, set and grid, no more"),
        ("seeds: [7]", "grid: [3]", "line 11: sizes.smoke.grid: must be a mapping of names to values"),
        ("seeds: [7]", "grid: {norm_type: []}", "line 11: sizes.smoke.grid.norm_type: needs one or more different values"),
        ("seeds: [7]", "grid: {max_depth: 3}", "line 3: set.max_depth: the grid varies it"),
        ("grid:\n", "grid: [\n", "line 5: "),
        ("seeds: [0, 4]", "seeds: [0, 4]\nabout: Another", "line 1: about: is there again in line 10: give it once"),
        ("norm_type: LayerNorm", "norm_placement: [sandwich_dual]", "line 5: grid.0..norm_placement: is there again in line 6"),
        ("max_depth: 9", "norm_type: RMSNorm", "line 3: set.norm_type: the grid varies it"),
        ("set: {max_depth: 3}", "set: {norm_type: RMSNorm}", "line 11: sizes.smoke.set.norm_type: the grid varies it"),
        ("max_depth: 9", "max_depth: 2001-02-30", "day is out of range"),
        ("stands", "sta\0nds", "line 1: character 0x0 is not allowed"),
        ("about: Where", "about: &a Where", "line 1: anchors and aliases .* are not allowed: write the value out"),
        ("max_depth: 9", "max_depth: *a", "line 3: anchors and aliases"),
        ("seeds: [0, 4]", f"seeds: {'[' * 3000}", "line 9: nested more than 8 deep"),
        ("seeds: [0, 4]", "seeds: !!set {0}", "line 9: tags such as tag:yaml.org,2002:set are not allowed"),
        ("seeds: [0, 4]", f"seeds: {list(range(4000))}", "line 4: grid: has 12000 runs, more than 10000"),
        ("seeds: [0, 4]", f"seeds: {list(range(40000))}", "bytes, more than a study's 100000"),
        ("notebook: 01_norm_placement", "notebook: mine.yaml", "line 2: notebook: .*mine.yaml is not a notebook"),
        ("pre_norm, post_norm", f"{'x' * 300}, post_norm", "line 4: grid: the name of a run has more than 255 letters: norm_pl"),
    ],
)
def test_what_cannot_be_meant_names_file_line_and_field(write, old, new, message):
    assert old in GOOD
    path = write(GOOD.replace(old, new))
    if message is None:  # the same two values, in another order of parameters: other names, but nothing is lost
        assert len(load(path).runs("cpu")) == 6
        return
    with pytest.raises(StudyError, match=message) as error:
        load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_mistyped_notebook_names_both_places_looked_in(write, tmp_path):
    with pytest.raises(StudyError) as error:
        load(write(GOOD.replace("01_norm_placement", "mine.ipynb")))
    assert f"{tmp_path / 'mine.ipynb'}" in str(error.value) and "and no mine.ipynb among the project's" in str(error.value)


def test_a_notebook_beside_the_study_is_found_from_anywhere_and_may_be_a_changed_copy(write, tmp_path, monkeypatch):
    original = load("norms").notebook
    copy = nbformat.read(original, 4)
    copy.cells[1].source += "\nwidth: int = 3"
    nbformat.write(copy, tmp_path / original.name)
    write(GOOD.replace("01_norm_placement", original.name).replace("max_depth: 9", "width: 4"))
    monkeypatch.chdir(tmp_path)
    study = load("mine.yaml")
    assert study.notebook == tmp_path.resolve() / original.name
    study.check_configs("cpu")
    assert study.configs(next(iter(study.runs("cpu").values()))) == {}


def test_given_seeds_are_checked_as_the_studys_are(write):
    with pytest.raises(StudyError, match=r"^seeds must be a list of different whole numbers, 0 or more, got \[-1\]$"):
        load(write(GOOD)).check_configs("cpu", [-1])


def test_a_study_is_not_named_so_that_its_runs_lie_elsewhere(write):
    with pytest.raises(StudyError, match=r"a study is named after its file, and '\.\.' cannot name a folder"):
        load(write(GOOD, "...yaml"))


def test_a_notebook_that_cannot_be_read_is_named_and_not_quoted(write, tmp_path):
    (tmp_path / "mine.ipynb").write_text("a secret")
    with pytest.raises(StudyError, match=r"line 2: notebook: .*mine.ipynb cannot be read \(NotJSONError\)$"):
        load(write(GOOD.replace("01_norm_placement", "mine.ipynb")))


def test_a_file_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "s.yaml").write_bytes(b"about: a\nnotebook: \xff\n")
    with pytest.raises(StudyError, match="s.yaml, line 2: must be UTF-8, byte 0xff is not"):
        load(tmp_path / "s.yaml")


def test_a_value_that_the_configs_refuse_is_found_before_anything_runs(write):
    study = load(write(GOOD.replace("pre_norm, post_norm", "prenorm, post_norm")))
    with pytest.raises(StudyError, match="run norm_placement=prenorm,.*norm_placement must be one of pre_norm"):
        study.check_configs("cpu")
    study = load(write(GOOD.replace("max_depth: 9", "max_depth: -5")))
    with pytest.raises(StudyError, match="mine.yaml, run norm_.*: max_depth must be a whole number from 1 to 1000000, got -5"):
        study.check_configs("cpu")
    with pytest.raises(StudyError, match="size must be one of smoke, cpu, narrow, paper, got 'big'"):
        study.check_configs("big")


def test_a_study_may_be_python(write, tmp_path):
    text = "from looped_lib.core.project import find_root\nfrom looped_lib.studies.study import Study\nSTUDY = "
    study = 'Study(name="p", about="", notebook=find_root() / "notebooks" / "01_norm_placement.ipynb", seeds=(1,))\n'
    found = load(write(text + study, "p.py"))
    assert list(found.runs("smoke")) == ["seed=1"] and found.file == str(tmp_path / "p.py")
    with pytest.raises(StudyError, match="r.py: seeds: must be a list of"):
        load(write(text + study.replace("(1,)", "(-1,)"), "r.py"))
    with pytest.raises(StudyError, match="must end with STUDY = Study"):
        load(write(text + "3\n", "q.py"))
    with pytest.raises(StudyError, match="s.py, line 2: SyntaxError: "):
        load(write("x = 1\nSTUDY = (\n", "s.py"))
    with pytest.raises(StudyError, match="t.py, line 4: NameError: name 'nothing'"):
        load(write(text + "1\nnothing\n", "t.py"))
    for grid, message in (("{'norm_type': ['RMSNorm']}", "tuple of mappings"), ("({'norm_type': 'RMSNorm'},)", "list of values")):
        with pytest.raises(StudyError, match=f"u.py: grid.*: must be a {message}, got"):
            load(write(text + study.replace("seeds=(1,)", f"grid={grid}"), "u.py"))
    with pytest.raises(StudyError, match="no study nroms: give a .yaml or .py file, or one of .*norms"):
        load("nroms")


@pytest.mark.parametrize("name", shipped())
def test_the_projects_studies_are_right_in_every_size(name):
    study = load(name)
    assert study.about and study.file == str(FOLDER / f"{name}.yaml")
    sizes = [size for size in PRESETS if name != "seeds" or size in ("smoke", "cpu")]  # the tour has these two
    for size in sizes:
        study.check_configs(size)
        trained = [tuple(NOTEBOOKS[study.notebook.stem](**_without_depth(p)).values()) for p in study.runs(size).values()]
        assert len(set(map(str, trained))) == len(trained), "two runs of one experiment"


def _without_depth(parameters):
    return {name: value for name, value in parameters.items() if name != "max_depth"}
