"""torchrun --nproc_per_node 8 -m looped_lib.ouro.finetune CONFIG.json RUN_DIR: see `job`."""

import sys

from looped_lib.core.errors import run
from looped_lib.ouro.finetune.job import main

if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
