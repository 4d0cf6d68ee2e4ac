"""The experiments of the paper and beyond it, and how their runs are made side by side."""
