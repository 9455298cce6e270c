"""Tiny random checkpoints of real pipeline classes: a module for each few families, every case in :data:`CASES`."""

import importlib
import pkgutil

from checkpoints.case import Case

CASES: list[Case] = [
    case
    for module in pkgutil.iter_modules(__path__)
    if module.name not in ("case", "parts")
    for case in importlib.import_module(f"checkpoints.{module.name}").CASES
]
