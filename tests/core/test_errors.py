"""Errors of commands: one line for what a user can mend, a traceback for a bug, and the exit status of each."""

import errno

import pytest
import torch

from looped_lib.core import checks
from looped_lib.core.errors import run, work
from looped_lib.core.files import Busy, holding, read_json
from looped_lib.samplers import FixedLoops


def refused(arguments):
    FixedLoops(n=0)


def missing(arguments):
    read_json("/nowhere/config.json")


def full(arguments):
    with work():
        raise OSError(errno.ENOSPC, "No space left on device", "/runs/metrics.jsonl")


def lines(arguments):
    checks.fail(FixedLoops(), "n", "two\n  lines")


def busy(arguments):
    with holding(arguments[0]), holding(arguments[0], patience=0):
        pass


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (refused, 2, "FixedLoops.n must be a whole number of at least 1, got 0"),
        (missing, 2, "/nowhere/config.json: there is no such file or folder"),
        (full, 1, "/runs/metrics.jsonl: the disk is full: free some space, then give the same command again"),
        (lines, 2, "FixedLoops.n must be two; lines, got 4"),
        (busy, Busy.exit_status, "another process is at work in"),
    ],
)
def test_what_a_user_can_mend_is_one_line(command, status, message, tmp_path, capsys):
    assert run(command, [str(tmp_path)]) == status
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}") and said.count("\n") == 1


@pytest.mark.parametrize(
    "bug",
    [
        lambda arguments: int("many"),
        lambda arguments: {}["key"],
        lambda arguments: torch.zeros(2) @ torch.zeros(3),
        lambda arguments: torch.Generator("no device"),
        lambda arguments: (_ for _ in ()).throw(ValueError("not raised by the library")),
    ],
)
def test_a_bug_keeps_its_traceback(bug, capsys):
    assert run(bug, []) == 1
    assert capsys.readouterr().err.startswith("Traceback")


def test_an_interrupt_is_one_line(capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    assert run(interrupted, []) == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on from what is done\n"
