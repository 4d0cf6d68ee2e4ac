"""Speed against the naive form and against the machine: `looped-lib bench [NAME...]`."""
