"""What a model does as it loops: Jacobian, spectrum, trajectories, depth, exits."""
