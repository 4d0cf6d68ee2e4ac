"""Ouro's accuracy by loop count: its own test set, and lm-eval's."""
