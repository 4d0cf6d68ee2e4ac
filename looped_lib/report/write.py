"""Write the report: `make report`, or looped-lib report.

Executes notebook 08 and leaves in runs/report/ claims.json, the figures as SVG and PNG, the notebook, the page as HTML and PDF.
"""

import argparse
import sys
from pathlib import Path

from looped_lib.core.project import RECORDED, find_root, runs_folder
from looped_lib.report import recorded
from looped_lib.report.all_claims import ALL
from looped_lib.report.browser import NoBrowser
from looped_lib.report.claims import judge
from looped_lib.report.evidence import Evidence
from looped_lib.report.export import save_pdf
from looped_lib.studies.batch import execute, export_html
from looped_lib.studies.sizes import PRESETS


def main(arguments: list[str]) -> None:
    """Execute, export, say where it is."""
    parser = argparse.ArgumentParser(prog="looped-lib report", description="Every claim beside what was measured")
    parser.add_argument("--runs", default="", help="folder of the runs; default: the project's")
    parser.add_argument("--size", default="cpu", choices=PRESETS, help="of the figures; the claims are of all sizes")
    parser.add_argument("--out", type=Path, help="default: runs/report")
    parser.add_argument(
        "--record", action="store_true", help="write runs/recorded/REPORT.md, its figures and claims.json anew instead"
    )
    args = parser.parse_args(arguments)
    if args.record:
        records = runs_folder() / RECORDED
        print(recorded.write(records, judge(ALL, Evidence(records.parent))))
        return
    out = (args.out or runs_folder() / "report").resolve()
    notebook = find_root() / "notebooks" / "08_report.ipynb"
    executed = execute(notebook, out, {"runs": args.runs, "preset": args.size, "out": str(out)})
    export_html(executed, out / "report.html", code=False)
    print(f"{out / 'claims.json'}\n{out / 'report.html'}")
    try:
        save_pdf(out / "report.html", out / "report.pdf")
        print(out / "report.pdf")
    except NoBrowser as e:
        print(f"no PDF: {e}", file=sys.stderr)
