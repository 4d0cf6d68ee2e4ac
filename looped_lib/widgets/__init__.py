"""What needs IPython: the explorer, live tables and curves."""
