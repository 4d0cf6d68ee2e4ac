"""What is learned: problems, their characters, files and grading."""
