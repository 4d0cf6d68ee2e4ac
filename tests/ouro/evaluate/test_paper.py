"""The published numbers, and ours beside them."""

import pandas as pd
import pytest

from looped_lib.ouro.evaluate.paper import NOT_RUN, OURO, STARS, TASKS, beside_paper
from looped_lib.ouro.evaluate.tables import drops

AVERAGES = {
    ("base", 4): 67.41,
    ("base", 8): 55.09,
    ("sft", 4): 70.46,
    ("sft", 8): 52.97,
    ("stars", 4): 74.18,
    ("stars", 8): 65.55,
}


def ours(*rows: tuple[str, str, int, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["model", "task", "depth", "value", "stderr"])


def test_the_table_gives_the_averages_that_the_paper_prints():
    means = (100 * STARS.groupby(["model", "depth"])["value"].mean()).round(2).to_dict()
    assert means == pytest.approx(AVERAGES, abs=0.011) and len(STARS) == 30 and len(OURO) == 24


def test_ouro_peaks_where_it_was_trained():
    for _, rows in OURO.groupby("task"):
        assert rows.set_index("depth")["value"].idxmax() == 4


def test_a_drop_is_measured_from_the_models_own_peak():
    table = drops(STARS).set_index(["model", "depth"])
    assert (
        100 * table.loc[("stars", 8), "drop"] == pytest.approx(74.18 - 65.55, abs=0.01) and table.loc[("stars", 4), "drop"] == 0
    )
    partly = ours(("a", "x", 4, 0.5, 0), ("a", "y", 4, 0.7, 0), ("a", "x", 8, 0.9, 0), ("b", "x", 8, 0.4, 0))
    found = drops(partly).set_index(["model", "depth"])
    assert list(found.index) == [("a", 4), ("b", 8)]  # of a, depth 8 is another mean: not of the same tasks
    assert found.loc[("a", 4), "value"] == pytest.approx(0.6)


def test_our_rows_stand_under_the_papers_of_their_kind_and_depth():
    whole = [("stars-seed0", task, 8, 0.5, 0.01) for task in TASKS]
    table = beside_paper(ours(("base", "gsm8k", 4, 0.75, 0.0119), ("mine", "svamp", 16, 0.2, float("nan")), *whole))
    index = [(m, t, r) for m, t, r in table.index]
    assert index.index(("base", 4, "ours")) == index.index(("base", 4, "paper")) + 1
    assert index.index(("stars-seed0", 8, "ours")) == index.index(("stars", 8, "paper")) + 1
    assert index[-1] == ("mine", 16, "ours") and len(index) == 6 + 6 + 1
    row = table.loc[("base", 4, "ours")]
    assert row["gsm8k"] == "75.00 ± 1.19" and row["asdiv"] == NOT_RUN and row["avg"] == NOT_RUN
    assert table.loc[("stars-seed0", 8, "ours"), "avg"] == "50.00" and table.loc[("mine", 16, "ours"), "svamp"] == "20.00"
    assert table.loc[("stars", 4, "paper"), "gsm8k"] == "81.96" and table.loc[("base", 8, "paper"), "avg"] == "55.09"


def test_what_was_not_run_says_so():
    table = beside_paper(ours(("base", "word_problems", 4, 1.0, 0.0)))
    assert len(table) == 12 and (table.xs("ours", level="row") == NOT_RUN).all(axis=None)
