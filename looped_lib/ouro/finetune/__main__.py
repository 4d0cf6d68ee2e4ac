"""python -m looped_lib.ouro.finetune CONFIG.json RUN_DIR: see `job`."""

from looped_lib.ouro.finetune.job import main

main()
