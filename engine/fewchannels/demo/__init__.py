"""The shapes world, and the small FLUX pipeline that draws it.

``world`` draws captioned scenes with exact masks and ``judge`` says what an image shows. The trained pipeline is data,
in ``model/``; ``build``, ``train`` and ``evaluate`` are commands of their own that made it and say how well it draws.

Imported by others: judge, world.
Imports: errors, files.
"""
