"""looped_lib: a laboratory for looped (depth-recurrent) language models. Importing it has no side effects."""
