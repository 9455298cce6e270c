"""A local web application over runs and sweeps."""
