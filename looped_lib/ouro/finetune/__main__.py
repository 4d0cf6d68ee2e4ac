"""torchrun --nproc_per_node 8 -m looped_lib.ouro.finetune CONFIG.json RUN_DIR: see `job`."""

import sys
from importlib import import_module

from looped_lib.core.errors import run
from looped_lib.core.parents import end_with_torchrun
from looped_lib.core.quiet import be_quiet

if __name__ == "__main__":
    be_quiet()
    end_with_torchrun()  # before the seconds that the next line takes
    sys.exit(run(import_module("looped_lib.ouro.finetune.job").main, sys.argv[1:]))
