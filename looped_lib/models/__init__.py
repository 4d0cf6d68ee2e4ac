"""What is looped: the small transformer and its parts."""
