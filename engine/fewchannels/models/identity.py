"""Identity of a model: its weights, files that change them, and a user's family file."""

from typing import Any

from fewchannels.models.family import Family
from fewchannels.models.family_file import as_fields
from fewchannels.models.load_options import Loading
from fewchannels.models.source import ModelSource, file_digests, weights_digest


def model_identity(source: ModelSource, loading: Loading, family: tuple[str, Family] | None) -> dict[str, Any]:
    """The model's fields of an identity (``schemas/store.md``): ``weights``, ``files``, and those given of the others.

    Args:
        source: the model.
        loading: loading options, which name adapters and a transformer file.
        family: a user's own family, with its transformer's class name; None without one.
    """
    found: dict[str, Any] = {"weights": weights_digest(source), "files": file_digests(source)}
    if files := loading.digests():
        found["weight_files"] = files
    if family:
        found["family"] = {family[0]: as_fields(family[1])}
    return found
