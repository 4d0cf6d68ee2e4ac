"""Ouro: a native transformers model, its data, and STARS fine-tuning under torchrun."""
