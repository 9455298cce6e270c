"""The Triton kernels of ``measures.fused``, run by Triton's interpreter: NumPy on a CPU, no GPU and no compiler."""

import importlib
import os
import sys
from functools import cache
from types import ModuleType
from unittest.mock import patch

FUSED = "fewchannels.measures.fused"


@cache
def interpreted() -> ModuleType:
    """The module, imported with a Triton of its own: the variable counts when Triton itself is imported.

    Another test may have imported Triton before, for a compiled model, and goes on with that.
    """
    apart = [name for name in sys.modules if name.split(".")[0] == "triton" and "_C" not in name] + [FUSED]
    with patch.dict(sys.modules), patch.dict(os.environ, TRITON_INTERPRET="1"):
        for name in apart:
            sys.modules.pop(name, None)
        return importlib.import_module(FUSED)
