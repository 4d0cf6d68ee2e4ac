"""lm-eval's own command on checkpoints of Ouro: `--model hf` reads them as it reads any other.

    looped-lib lm-eval run --model hf --model_args pretrained=FINETUNE_RUN/model --tasks gsm8k

Without it, transformers does not know the model type: Ouro is registered by `looped_lib.ouro.model.modeling`, which a script that
calls `AutoModelForCausalLM.from_pretrained` imports. The loop count is the checkpoint's; `harness` measures at every depth.
"""

import argparse
import sys


def main(arguments: list[str]) -> None:
    """lm-eval with these arguments."""
    parser = argparse.ArgumentParser(prog="looped-lib lm-eval", description="lm-eval's own command, which then knows Ouro")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="lm-eval's: run --help lists them")
    given = parser.parse_args(arguments).arguments
    import lm_eval.__main__ as command  # slow to import

    import looped_lib.ouro.model.modeling  # noqa: F401  registers Ouro

    sys.argv = ["lm_eval", *given]  # where it looks for them
    command.cli_evaluate()
