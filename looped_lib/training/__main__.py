"""python -m looped_lib.training CONFIG.json RUN_DIR: see `trainer`."""

from looped_lib.training.trainer import main

main()
