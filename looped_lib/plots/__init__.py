"""Figures: tidy data in, plotly Figures out."""
