"""What edits do: contrasts with their controls, tests, figures and findings."""
