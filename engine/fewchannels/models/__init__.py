"""From a model's name to a loaded pipeline whose hidden states can be read and edited."""
