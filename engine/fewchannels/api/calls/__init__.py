"""Recording and editing of the calls of a user's own pipeline, in memory.

``call`` describes one call, ``batch`` the rows that the transformer runs for it, and ``watched`` keeps taps on the
model for the duration of a context. ``recording`` keeps the data that a capture would store, ``edits`` defines
conditions of a sweep in Python, and ``editing`` applies them.
"""
