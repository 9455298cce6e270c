"""Figures: described once, drawn as files and for a browser."""
