"""Ouro as a native transformers model."""
