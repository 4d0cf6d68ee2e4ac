"""Ground floor: checks and files."""
