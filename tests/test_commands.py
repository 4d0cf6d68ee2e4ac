"""The commands: one table, light to list, each with its own help."""

import subprocess
import sys
from importlib import import_module

import pytest

from looped_lib.__main__ import COMMANDS, PROCESSES


def call(*arguments):
    return subprocess.run([sys.executable, "-m", "looped_lib", *arguments], capture_output=True, text=True)


def test_help_lists_every_command_without_torch():
    done = call("--help")
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert done.returncode == 0 and listed == list(COMMANDS)
    code = "import sys, looped_lib.__main__ as m; m.overview(); sys.exit(len({'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_reader_that_has_had_enough_is_no_error():
    command = (
        "import sys, time; sys.stdin.readline(); sys.argv[1:] = ['--help']; import looped_lib.__main__ as m; sys.exit(m.main())"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", command], text=True, **pipes)
    process.stdout.close()
    process.stdin.write("now\n")
    process.stdin.close()
    assert process.stderr.read() == "" and process.wait() == 141


def test_an_unknown_command_is_one_line_with_the_nearest():
    done = call("swep", "norms")
    assert done.returncode == 2 and done.stderr == "error: there is no command swep: did you mean sweep?\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        import_module(f"looped_lib.{COMMANDS[name][0]}").main(["--help"])
    assert stopped.value.code == 0 and capsys.readouterr().out.startswith(f"usage: looped-lib {name} ")


def test_every_process_has_a_main():
    assert all(callable(import_module(f"looped_lib.{module}").main) for module in PROCESSES.values())


def test_of_the_processes_of_a_torchrun_one_says_what_is_wrong(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": -1}')
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "looped_lib.training"]
    command = [sys.executable, *torchrun, str(tmp_path / "config.json"), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode and len(said) == 1 and "ExperimentConfig.seed must be a whole number of at least 0, got -1" in said[0]
