"""Run folders: one experiment, tables over many, comparison, records."""
