"""One model in memory that generates and edits while somebody watches."""
