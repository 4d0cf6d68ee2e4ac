"""Nothing is reported to anyone by the processes that this project starts, unless its user says so."""

import os
import re
import subprocess
import sys

from looped_lib.core.project import find_root
from looped_lib.core.quiet import QUIET, be_quiet, quiet_environment

ASK = """
import sys; sys.argv = ["looped-lib", "--help"]
from looped_lib.__main__ import main
main()
import datasets, huggingface_hub
print(datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY)
"""


def test_a_child_is_quiet_but_for_what_its_user_set(monkeypatch):
    for name in QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    assert quiet_environment(A="b") == {**os.environ, **QUIET, "DO_NOT_TRACK": "0", "A": "b"}
    be_quiet()
    assert {name: os.environ[name] for name in QUIET} == {**QUIET, "DO_NOT_TRACK": "0"}


def test_the_libraries_of_a_command_heed_it():
    env = {name: value for name, value in os.environ.items() if name not in QUIET}
    said = subprocess.run([sys.executable, "-c", ASK], env=env, capture_output=True, text=True, check=True, cwd=find_root())
    assert said.stdout.splitlines()[-1] == "False True"


def test_make_is_as_quiet():
    exported = re.findall(r"^export (\w+) \?= (.*)$", (find_root() / "Makefile").read_text(), re.M)
    assert dict(exported) == QUIET
