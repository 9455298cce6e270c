"""Runs verified, merged, exported, compacted, and exchanged by way of the Hugging Face Hub."""
