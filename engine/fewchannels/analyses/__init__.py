"""A run becomes results: tables, figures and findings."""
