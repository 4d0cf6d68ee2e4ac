"""Fine-tuning runs by preset, as {run name: FinetuneConfig}; the modes of the paper's table differ in depth and penalty only.

smoke   seconds: does everything run?            a tiny Ouro, a few updates
cpu     minutes a run: a real result             a tiny Ouro, pre-trained at depth 4 on the word problems, then fine-tuned
paper   Ouro-1.4B on NuminaMath-1.5, 8 GPUs      the recipe of arXiv 2605.26733, as its code has it
"""

from dataclasses import replace
from pathlib import Path

from transformers import AutoConfig

from looped_lib.config import PenaltyConfig
from looped_lib.core.project import find_root
from looped_lib.ouro.finetune.config import ChatDataConfig, FinetuneConfig, UpdatesConfig
from looped_lib.ouro.finetune.folder import MODEL
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.samplers import TRAINED_DEPTH, FixedLoops

PRESETS = ("smoke", "cpu", "paper")
MODES = ("sft", "random", "jsrr", "stars")
TEST_PROBLEMS = {"smoke": 20, "cpu": 500, "paper": 0}  # held-out word problems a study is measured on


def study(
    preset: str, folder: str | Path, chosen: str = "sft stars", seed: int = 0, model: str = ""
) -> tuple[dict[str, FinetuneConfig], OuroConfig]:
    """The runs of a study, in the order they are to be run in `folder`/<name>, and the architecture they share.

    The small presets first pre-train `base`, unless `model` says what to start from; `paper` starts from Ouro-1.4B.
    """
    folder, runs = Path(folder), {}
    if _known(preset) != "paper" and not model:
        architecture = write_architecture(folder / "architecture", preset)
        runs[f"base-seed{seed}"] = pretraining(preset, architecture, seed)
        start_from = folder / f"base-seed{seed}" / MODEL
    else:
        start_from = architecture = model or FinetuneConfig().model
    runs |= {f"{name}-seed{seed}": c for name, c in modes(stars(preset, start_from, seed), chosen).items()}
    return runs, AutoConfig.from_pretrained(architecture)


def modes(base: FinetuneConfig, chosen: str = "all") -> dict[str, FinetuneConfig]:
    """`base`, which is STARS, and what is left of it without random loops, without the penalty, without both.

    `chosen` is "all" or one or more of MODES, with spaces between. ValueError on any other.
    """
    names = MODES if chosen == "all" else tuple(chosen.split())
    if not names or not set(names) <= set(MODES):
        raise ValueError(f"modes must be all, or some of {', '.join(MODES)} with spaces between, got {chosen!r}")
    fixed, free = FixedLoops(TRAINED_DEPTH), replace(base.penalty, weight=0.0)
    variants = {
        "sft": replace(base, loops=fixed, penalty=free),
        "random": replace(base, penalty=free),
        "jsrr": replace(base, loops=fixed),
        "stars": base,
    }
    return {name: variants[name] for name in names}


def mode(config: FinetuneConfig) -> str:
    """What a run of a study is: base (pre-training), or one of MODES."""
    if config.from_scratch:
        return "base"
    random, penalised = not isinstance(config.loops, FixedLoops), config.penalty.weight > 0
    return {(False, False): "sft", (True, False): "random", (False, True): "jsrr", (True, True): "stars"}[random, penalised]


def stars(preset: str, model: str | Path, seed: int | None = None) -> FinetuneConfig:
    """STARS fine-tuning of the model in the folder (or of the hub) `model`, in the sizes of `preset`."""
    paper = FinetuneConfig(model=str(model), seed=74 if seed is None else seed)
    if _known(preset) == "paper":
        return paper
    return replace(
        paper,
        data=word_problems(),
        updates=replace(_small_updates(preset), steps=600 if preset == "cpu" else 4, lr=1e-3),
        seed=seed or 0,
    )


def pretraining(preset: str, architecture: str | Path, seed: int = 0) -> FinetuneConfig:
    """Training of a small preset's model from random weights, at depth 4. `architecture`: the folder of `write_architecture`."""
    if _known(preset) == "paper":
        raise ValueError("the paper preset starts from ByteDance/Ouro-1.4B: there is nothing to pre-train")
    return FinetuneConfig(
        model=str(architecture),
        from_scratch=True,
        tokenizer=str(find_root() / "data" / "tokenizer"),
        loops=FixedLoops(TRAINED_DEPTH),
        penalty=PenaltyConfig(weight=0.0, share=1.0, onset=0),
        data=word_problems(),
        updates=_small_updates(preset),
        seed=seed,
    )


def word_problems() -> ChatDataConfig:
    """The training problems of data/, without a system prompt."""
    path = find_root() / "data" / "word_problems" / "train.jsonl"
    return ChatDataConfig(dataset=str(path), system_prompt="", max_len=72, max_rows=0)


def write_architecture(folder: str | Path, preset: str) -> Path:
    """Write the config.json of a small preset's model (136,000 parameters in `cpu`) into `folder`, and return the folder."""
    width, layers = {"smoke": (32, 2), "cpu": (64, 1)}[preset]
    OuroConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        head_dim=32,  # the narrowest that vLLM's CPU kernels take
        max_position_embeddings=1024,
        rope_theta=1e4,
        initializer_range=0.08,
        total_ut_steps=TRAINED_DEPTH,
    ).save_pretrained(folder)
    return Path(folder)


def _small_updates(preset: str) -> UpdatesConfig:
    cpu = preset == "cpu"
    return UpdatesConfig(
        steps=1800 if cpu else 6,
        batch_size=64 if cpu else 8,
        micro_batch=32 if cpu else 4,
        lr=8e-3,
        schedule="cosine",
        min_lr_ratio=0.05,
        precision="fp32",
        gradient_checkpointing=False,
        log_every=10 if cpu else 1,
        checkpoint_every=500 if cpu else 4,
    )


def _known(preset: str) -> str:
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    return preset
