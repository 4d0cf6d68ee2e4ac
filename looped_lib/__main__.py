"""The commands: `looped-lib COMMAND ...` or `python -m looped_lib COMMAND ...`; COMMAND --help says more about one.

Training and fine-tuning on several processes are torchrun's to start: `torchrun -m looped_lib.training` and
`torchrun -m looped_lib.ouro.finetune`, with the arguments of `train` and `finetune`.
"""

import sys
from difflib import get_close_matches
from importlib import import_module

from looped_lib.core.errors import run
from looped_lib.core.parents import end_with_torchrun
from looped_lib.core.quiet import be_quiet

COMMANDS = {
    "train": ("training.trainer", "train one experiment and measure nothing: CONFIG.json RUN_DIR"),
    "finetune": ("ouro.finetune.job", "fine-tune Ouro: FINETUNE.json RUN_DIR"),
    "evaluate": ("ouro.evaluate.harness", "accuracy of Ouro checkpoints by loop count on benchmarks: EVALUATION.json OUT"),
    "lm-eval": ("ouro.evaluate.lm_eval", "lm-eval's own command, which then knows Ouro: run --model hf ..."),
    "notebook": ("studies.batch", "run a notebook as a batch job and export it: NOTEBOOK OUT -p NAME VALUE"),
    "sweep": ("studies.sweep", "run all runs of a study, several at a time: STUDY"),
    "paper": ("studies.paper_suite", "the paper's runs on one GPU, some minutes at a time"),
    "unpack": ("runs.archive", "write the results in an archive of `paper` into runs/recorded: ARCHIVE"),
    "digits": ("runs.digits", "accuracy of finished runs on shorter and longer numbers: RUN_DIR..."),
    "record": ("runs.record", "copy what is small of finished runs into runs/recorded: FOLDER..."),
    "report": ("report.write", "every claim of the paper beside what the runs say"),
    "bench": ("bench.measure", "speed against the naive form and the machine's peak"),
    "data": ("tasks.write_data", "write the files of data/ anew"),
}
"""By name: the module whose `main` it is, and what it does in a line."""

PROCESSES = {"_run": "studies.run", "_engine": "ouro.evaluate.worker", "_gpu": "bench.gpu"}
"""Processes that other commands start: one run of a sweep, one engine of an evaluation, the timings of a GPU."""


def overview() -> str:
    """All commands, a line each."""
    return "\n".join(["usage: looped-lib COMMAND ...", ""] + [f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items()])


def main() -> int:
    """Run the command that the arguments name; returns its exit status."""
    be_quiet()
    end_with_torchrun()
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        return run(lambda given: print(f"{overview()}\n\n{__doc__}".rstrip()), arguments)
    if name not in COMMANDS and name not in PROCESSES:
        near = get_close_matches(name, COMMANDS, n=1, cutoff=0.4)
        meant = f"did you mean {near[0]}?" if near else "looped-lib --help lists them"
        print(f"error: there is no command {name}: {meant}", file=sys.stderr)
        return 2
    module = PROCESSES[name] if name in PROCESSES else COMMANDS[name][0]
    return run(lambda given: import_module(f"looped_lib.{module}").main(given), arguments)


if __name__ == "__main__":
    sys.exit(main())
