"""torchrun --nproc_per_node 2 -m looped_lib.training CONFIG.json RUN_DIR: see `trainer`."""

import sys

from looped_lib.core.errors import run
from looped_lib.core.parents import end_with_torchrun

if __name__ == "__main__":
    end_with_torchrun()  # before the seconds that the next line takes
    from looped_lib.training.trainer import main

    sys.exit(run(main, sys.argv[1:]))
