"""How few channels hold how much of the hidden states."""
