"""Each placement with one of the norm types, DeepNorm included."""

STYLES = [
    ("pre_norm", "LayerNorm"),
    ("post_norm", "RMSNorm"),
    ("sandwich_branch", "SimpleNorm"),
    ("sandwich_dual", "LayerNorm"),
    ("post_norm", "DeepNorm"),
]
