"""torchrun --nproc_per_node 2 -m looped_lib.training CONFIG.json RUN_DIR: see `trainer`."""

import sys

from looped_lib.core.errors import run
from looped_lib.training.trainer import main

if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
