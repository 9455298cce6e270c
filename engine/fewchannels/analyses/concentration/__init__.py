"""Concentration of the hidden states' energy in few channels."""
