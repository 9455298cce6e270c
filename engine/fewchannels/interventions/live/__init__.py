"""One model in memory that generates and edits interactively."""
