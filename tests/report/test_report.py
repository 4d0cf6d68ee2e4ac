"""The report as a command: claims.json is what the claims say of the run folders, and the page shows it."""

import hashlib
import shutil
import subprocess
import sys
from html import unescape

import pytest

from looped_lib.core.files import read_json, write_json
from looped_lib.core.project import find_root
from looped_lib.plots.curves import accuracy_by_depth
from looped_lib.report import recorded
from looped_lib.report.all_claims import ALL
from looped_lib.report.claims import judge
from looped_lib.report.evidence import Evidence


def test_the_report_of_what_is_recorded(tmp_path):
    shutil.copytree(find_root() / "runs" / "recorded", tmp_path / "runs" / "recorded")
    command = [sys.executable, "-m", "looped_lib", "report", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]
    done = subprocess.run(command, cwd=find_root(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = read_json(tmp_path / "report" / "claims.json")
    assert rows == judge(ALL, Evidence(tmp_path / "runs"))
    before = read_json(find_root() / "runs" / "recorded" / "report" / "claims.json")
    for name in ("key", "size", "claim", "paper", "number", "measured", "seeds", "verdict", "runs", "differs"):
        assert [row[name] for row in rows] == [row[name] for row in before]  # else: record the report anew
    assert [row["value"] for row in rows] == [v if v is None else pytest.approx(v) for v in (r["value"] for r in before)]
    assert {"claim", "paper", "measured", "interval", "size", "verdict", "runs"} <= set(rows[0])
    page = (tmp_path / "report" / "report.html").read_text()
    shown = [row for row in rows if row["verdict"] != "not run"]
    assert len(shown) >= 10 and all((tmp_path / folder).is_dir() or "-seed" in folder for row in shown for folder in row["runs"])
    assert all(row["measured"] in unescape(page) for row in shown) and page.count("<summary>") == len(shown)
    assert "from looped_lib" not in page and "<title>8. The report: every claim" in page  # what was found, not how
    assert page.index("At a glance") < page.index("Plotly.newPlot") < page.index("How to read the tables")
    assert page.count("Plotly.newPlot") >= 19  # every figure, those that say "not run" included
    if "no PDF" not in done.stderr:
        assert (tmp_path / "report" / "report.pdf").read_bytes().startswith(b"%PDF")
        assert len(list((tmp_path / "report" / "figures").glob("*.svg"))) == 19


def test_recorded_verdicts_that_the_log_and_the_readme_speak_of():
    verdicts = {row["key"]: row["verdict"] for row in judge(ALL, Evidence()) if row["size"] == "cpu"}
    assert verdicts["state_grows"] == verdicts["state_bounded"] == verdicts["random_alone"] == "reproduced"
    assert verdicts["stars"] == "not reproduced"


def test_the_results_page_and_its_figures_are_those_of_the_records():
    """If not: python -m looped_lib report --record."""
    records = find_root() / "runs" / "recorded"
    assert (records / "REPORT.md").read_text() == recorded.page(read_json(records / "report" / "claims.json"))
    assert recorded.stale(records) == []


def test_a_figure_is_stale_when_its_numbers_or_its_file_change(monkeypatch, tmp_path):
    figure = accuracy_by_depth([1, 2], {"a": [0.5, 0.5]})
    (tmp_path / "report/figures").mkdir(parents=True)
    (tmp_path / "report/figures/a.png").write_bytes(b"drawn")
    kept = [recorded.checksum(figure), hashlib.sha256(b"drawn").hexdigest()[:16]]
    write_json(tmp_path / "report/figures/figures.json", {"a": kept})
    monkeypatch.setattr(recorded, "shown", lambda records: {"a": figure})
    assert recorded.stale(tmp_path) == []
    (tmp_path / "report/figures/a.png").write_bytes(b"another")
    assert recorded.stale(tmp_path) == ["a"]
    (tmp_path / "report/figures/a.png").write_bytes(b"drawn")
    figure.data[0].y = [50, 60]
    assert recorded.stale(tmp_path) == ["a"]
