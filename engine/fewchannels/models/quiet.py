"""Silence of the libraries that load and run models."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def quietly(*libraries: str) -> Iterator[None]:
    """Silence libraries' progress bars and warnings, such as the one for each truncated prompt.

    Args:
        *libraries: ``diffusers`` and ``transformers``, or one of them; they are imported.
    """
    loggers = [import_module(f"{library}.utils.logging") for library in libraries]
    levels = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)
            logger.enable_progress_bar()
