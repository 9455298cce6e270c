"""Verify, merge, export and compact runs, and exchange them through the Hugging Face Hub."""
