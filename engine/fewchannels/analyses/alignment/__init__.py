"""Whether clusters of tokens by their massive channels find the subject."""
