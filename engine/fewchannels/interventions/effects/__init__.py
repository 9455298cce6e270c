"""Effects of edits: contrasts with their controls, tests, figures and findings."""
