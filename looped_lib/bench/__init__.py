"""Speed against the naive form and against the machine: `python -m looped_lib.bench [NAME...]`."""
