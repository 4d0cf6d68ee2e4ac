"""torchrun --nproc_per_node 8 -m looped_lib.ouro.finetune CONFIG.json RUN_DIR: see `job`."""

import sys

from looped_lib.core.errors import run
from looped_lib.core.parents import end_with_torchrun

if __name__ == "__main__":
    end_with_torchrun()  # before the seconds that the next line takes
    from looped_lib.ouro.finetune.job import main

    sys.exit(run(main, sys.argv[1:]))
