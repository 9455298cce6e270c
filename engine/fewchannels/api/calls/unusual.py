"""Everything in a recorded call that a capture of the same prompts does not have, so that their runs differ."""

import inspect
from typing import Any

from fewchannels.api.calls.call import PER_PROMPT, Call
from fewchannels.models.embeddings import digest
from fewchannels.models.sampler import Sampler

_IDENTIFIED = (
    "negative_prompt",
    "generator",
    "num_inference_steps",
    "true_cfg_scale",
    "height",
    "width",
    "output_type",
    "return_dict",
    "callback_on_step_end_tensor_inputs",
)
"""Arguments whose effect a run names, or that have none on the image."""
_PLAIN = (bool, int, float, str, tuple)


def unusual(call: Call, sampler: Sampler) -> tuple[str, ...]:
    """Describe a call's changes, and its arguments beside prompt, noise, steps, scales and size.

    Args:
        call: the call.
        sampler: sampler of its pipeline.

    Returns:
        Text that is equal only for equal changes and arguments; nothing for a call as a capture makes it.
    """
    how = sampler.geometry.pipeline
    identified = {*_IDENTIFIED, how.prompt, how.embedded, how.classifier_free, how.area, *PER_PROMPT, *how.fixed}
    parameters = inspect.signature(type(sampler.pipeline).__call__).parameters
    found = []
    for name, value in call.arguments.items():
        if name == how.length and isinstance(value, int):
            is_usual = min(value, how.max_tokens) == sampler.max_prompt_tokens()
        else:
            default = parameters[name].default if name in parameters else None
            is_usual = name in identified or value is default or (isinstance(value, _PLAIN) and value == default)
        if not is_usual:
            found.append(f"{name}={_as_text(value)}")
    return (*found, *call.changes())


def _as_text(value: Any) -> str:
    try:
        return digest(value)
    except TypeError:  # a function or an object, which is known by its name
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
