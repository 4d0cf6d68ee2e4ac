"""Ouro on vLLM."""
