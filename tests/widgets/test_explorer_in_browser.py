"""The explorer in a real JupyterLab and the slider in an exported page, both in headless Chromium."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import nbformat
import pytest
from browsers import needs_browser
from playwright.sync_api import sync_playwright

from looped_lib.plots.walk import walk_slider
from looped_lib.report.browser import FLAGS, find_browser
from looped_lib.runs.experiment import run_experiment
from looped_lib.studies import paper
from looped_lib.studies.batch import export_html
from looped_lib.widgets.explorer import Walks

PLOT = "document.querySelector('.js-plotly-plot')"
TITLE, MARK = f"{PLOT}.layout.title.text", f"Array.from({PLOT}.data[5].x)[0]"

pytestmark = needs_browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name in ("fixed", "stars"):
        run_experiment(paper.tour("smoke")[name], root / "tour" / name, max_depth=8, progress=False)
    return root


@pytest.fixture
def page(tmp_path):
    """A page of a new browser; the test fails on an error in its console."""
    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=find_browser(), args=FLAGS) as browser:
            page = browser.new_page(viewport={"width": 1500, "height": 1000})
            page.set_default_timeout(30_000)
            # anywidget gives a widget two seconds to load, which a machine at work on other tests may need longer for.
            page.add_init_script("const t = AbortSignal.timeout.bind(AbortSignal); AbortSignal.timeout = (ms) => t(60 * ms)")
            errors = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", lambda message: errors.append(message.text) if "Error setting state" in message.text else None)
            yield page
    assert not errors


@contextmanager
def jupyterlab(folder):
    """The address of a JupyterLab that serves `folder`, reads no one's settings and ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    options = {"ServerApp.root_dir": folder, "ServerApp.port_retries": 0, "IdentityProvider.token": "test"}
    options |= {"LabApp.news_url": None, "LabApp.expose_app_in_browser": True}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(
            [*command, *(f"--{k}={v}" for k, v in options.items())],
            env=os.environ | own | {"IPYTHONDIR": str(folder / "IPYTHON")},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}/lab/tree/explorer.ipynb?token=test"
    finally:
        server.send_signal(signal.SIGTERM)  # it ends its kernels first
        try:
            server.wait(20)
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)


def wait_for_server(address):
    for _ in range(1200):
        try:
            return urllib.request.urlopen(address.split("/lab")[0] + "/api?token=test")
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("JupyterLab did not answer in 120 s")


def write_notebook(path, sources, outputs=()):
    cells = [nbformat.v4.new_code_cell(source, outputs=list(outputs)) for source in sources]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def test_the_explorer_works_in_jupyterlab(runs, tmp_path, page):
    source = f"from looped_lib.widgets.explorer import Explorer\nExplorer({str(runs)!r}, max_loops=12)"
    write_notebook(tmp_path / "explorer.ipynb", [source])
    with jupyterlab(tmp_path) as address:
        wait_for_server(address)
        page.goto(address)
        page.wait_for_function("window.jupyterapp && document.querySelector('.jp-Notebook .jp-CodeCell')")
        page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
        page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_function(f"{PLOT} && {PLOT}.data && {PLOT}.data.length > 5 && document.querySelector('.widget-hslider')")
        assert page.evaluate(TITLE).startswith("after 0 loops") and page.evaluate(f"{PLOT}.data[0].x.length") == 13
        first = page.evaluate(f"Array.from({PLOT}.data[0].x)")
        # As wide as its cell before anything is touched, and when the page changes; light and dark as the page.
        room = "document.querySelector('.jp-OutputArea-output').clientWidth"
        page.wait_for_function(f"{PLOT}._fullLayout.width == {room} && {room} > 900")
        page.set_viewport_size({"width": 1000, "height": 1000})
        page.wait_for_function(f"{PLOT}._fullLayout.width == {room} && {room} < 700")
        page.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
        page.wait_for_function(f"{PLOT}._fullLayout.paper_bgcolor == '#111111'")

        page.locator(".widget-dropdown select").nth(0).select_option(label="tour/stars")
        page.wait_for_function(f"{TITLE}.includes('tour/stars · ')")
        assert page.evaluate(f"Array.from({PLOT}.data[0].x)") != first

        page.locator(".widget-hslider .noUi-handle").last.press("ArrowRight")
        page.wait_for_function(f"{TITLE}.startsWith('after 1 loop:') && {MARK} == 1")

        page.locator(".widget-text input[type=text]").first.fill("12+3x")
        page.locator(".widget-text input[type=text]").first.press("Enter")
        page.wait_for_selector(".widget-html [role=alert] >> text=character 'x' at 4 is not one of")
        page.locator(".widget-text input[type=text]").first.fill("12+34")
        page.locator(".widget-text input[type=text]").first.press("Enter")
        page.wait_for_function(f"{TITLE}.includes('· 12+34= ·') && !document.querySelector('.widget-html [role=alert]')")

        page.get_by_role("button", name="3-D").click()
        page.wait_for_function(f"{PLOT}.data[0].visible === false && {PLOT}.querySelector('.gl-container canvas')")
        page.locator(".jupyter-widgets.widget-play button").first.click()  # plays to the end
        page.wait_for_function(f"{TITLE}.startsWith('after 12 loops') && {MARK} == 12")
        assert page.locator(".jp-OutputArea [data-mime-type$=error], .jp-OutputArea [data-mime-type$=stderr]").count() == 0


def test_the_slider_works_in_an_exported_page(runs, tmp_path, page):
    walks = Walks()
    walk = walks.walk(walks.run(runs / "tour" / "stars", "tour/stars"), "12+34=", 12)
    drawn = walk_slider(walk).to_html(full_html=False, auto_play=False)
    output = nbformat.v4.new_output("display_data", {"text/html": drawn})
    write_notebook(tmp_path / "walk.ipynb", ["walk_slider(walk).show()"], [output])
    export_html(tmp_path / "walk.ipynb", tmp_path / "walk.html")
    page.goto((tmp_path / "walk.html").as_uri())
    page.wait_for_function(f"{PLOT} && {PLOT}._fullLayout.sliders && document.querySelector('.slider-rail-touch-rect')")
    assert page.evaluate(TITLE).startswith("after 0 loops")
    rail = page.locator(".slider-rail-touch-rect").bounding_box()
    page.mouse.click(rail["x"] + rail["width"] - 2, rail["y"] + rail["height"] / 2)
    page.wait_for_function(f"{TITLE}.startsWith('after 12 loops') && {MARK} == 12")
    place = page.evaluate(f"[{PLOT}.data[1].x[0], {PLOT}.data[1].y[0], {PLOT}.layout.shapes[0].x0]")
    assert place == pytest.approx([*walk.coordinates[12], 12])
    assert json.loads(page.evaluate(f"JSON.stringify({PLOT}.data[5].y)"))[0] == pytest.approx(walk.residual[12])
