"""A pipeline of the user's own, in memory: its calls are recorded and edited where they are made.

``call`` says what one call is, ``batch`` which rows the transformer runs for it, and ``watched`` puts taps on the model
for as long as a context lasts. ``recording`` keeps what a capture would store, ``edits`` are conditions of a sweep in
words of Python, and ``editing`` applies them.
"""
