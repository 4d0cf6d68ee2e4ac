"""Figures and the page become files that other programs read; without a browser one sentence says so."""

import re
import stat
from xml.etree import ElementTree

import nbformat
import pandas as pd
import pytest
from browsers import needs_browser
from PIL import Image

from looped_lib.plots import curves, style
from looped_lib.report import export
from looped_lib.report.browser import NoBrowser, find_browser
from looped_lib.report.export import HEIGHT, WIDTH, save_figures, save_pdf
from looped_lib.studies.batch import export_html

FIGURE = curves.accuracy_by_depth([1, 2, 4], {"fixed": [0.0, 0.5, 1.0]})
SVG = "{http://www.w3.org/2000/svg}"


@needs_browser
def test_figures_are_svg_and_png(tmp_path):
    tall = style.not_run("Nothing here").update_layout(height=700)
    written = save_figures({"accuracy": FIGURE, "tall": tall}, tmp_path / "figures")
    assert [path.name for path in written] == ["accuracy.svg", "accuracy.png", "tall.svg", "tall.png"]
    assert sorted(written) == sorted((tmp_path / "figures").iterdir())  # and nothing half written
    svg = ElementTree.parse(written[0])
    texts = {"".join(text.itertext()) for text in svg.iter(f"{SVG}text")}
    assert {"Accuracy against loop count", "loops T", "exact match, % of held-out problems"} <= texts
    with Image.open(written[1]) as small, Image.open(written[3]) as large:
        assert small.size == (2 * WIDTH, 2 * HEIGHT) and large.size == (2 * WIDTH, 1400)
        assert len(small.getcolors(1 << 24)) > 10
    assert FIGURE.layout.font.size is None  # larger letters are the files' alone


@needs_browser
def test_a_page_is_printed_on_a4_with_its_figures_and_headings(tmp_path):
    picture = nbformat.v4.new_output("display_data", {"text/html": FIGURE.to_html(full_html=False)})
    wide = pd.DataFrame([range(10**9, 10**9 + 40)]).to_html()
    table = nbformat.v4.new_output("display_data", {"text/html": wide})
    cells = [nbformat.v4.new_markdown_cell("# What was found"), nbformat.v4.new_code_cell("figure", outputs=[picture] * 3)]
    nbformat.write(nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(outputs=[table])]), tmp_path / "n.ipynb")
    export_html(tmp_path / "n.ipynb", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    save_pdf(tmp_path / "report.html", tmp_path / "report.pdf")
    pdf = (tmp_path / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"What was found" in pdf and b"/Font" in pdf
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 2
    assert {tuple(map(round, map(float, box.split()))) for box in re.findall(rb"/MediaBox\s*\[([^]]*)\]", pdf)} == {
        (0, 0, 595, 842)
    }
    assert (tmp_path / "report.html").read_text() == page
    assert {path.name for path in tmp_path.iterdir()} == {"n.ipynb", "report.html", "report.pdf"}


def test_without_a_browser_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "page.html").write_text("<html><head></head></html>")
    for write in (
        lambda: save_figures({"accuracy": FIGURE}, tmp_path / "figures"),
        lambda: save_pdf(tmp_path / "page.html", tmp_path / "page.pdf"),
    ):
        with pytest.raises(NoBrowser, match="need Chrome or Chromium, but none of chromium, .* install one, or set BROWSER_PATH"):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_browser_asked_for_is_taken(tmp_path, monkeypatch):
    program = tmp_path / "browser"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("BROWSER_PATH", str(program))
    assert find_browser() == str(program)
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(NoBrowser, match="BROWSER_PATH is .*nowhere, which is no program"):
        find_browser()


def test_a_browser_that_does_not_start_is_none(tmp_path, monkeypatch):
    program = tmp_path / "browser"
    program.write_text("#!/bin/sh\necho no display >&2\nexit 3\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("BROWSER_PATH", str(program))
    (tmp_path / "page.html").write_text("<html><head></head></html>")
    with pytest.raises(NoBrowser, match="did not start"):
        save_figures({"accuracy": FIGURE}, tmp_path)
    with pytest.raises(NoBrowser, match="exit status 3.*no display"):
        save_pdf(tmp_path / "page.html", tmp_path / "page.pdf")
    assert {path.name for path in tmp_path.iterdir()} == {"browser", "page.html"}


@needs_browser
def test_a_browser_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_PATIENCE", 0.01)
    (tmp_path / "page.html").write_text("<html><head></head><body>late</body></html>")
    with pytest.raises(NoBrowser, match="did not print the page within"):
        save_pdf(tmp_path / "page.html", tmp_path / "page.pdf")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
