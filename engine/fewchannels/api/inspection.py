"""``fc.inspect``: a loaded pipeline that is not known, described."""

from pathlib import Path
from typing import TYPE_CHECKING

from fewchannels.api.messages import in_python
from fewchannels.api.models import lent
from fewchannels.errors import InputError
from fewchannels.files.durable import check_output, write

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from fewchannels.models.inspection import Inspection


class Inspected:
    """A description of an unknown model, to be reviewed.

    Args:
        found: what was found.

    Attributes:
        evidence: one line for each finding, with its numbers.
        doubts: what remains unclear; empty if all was clear.
        text: the family file, YAML.
    """

    def __init__(self, found: "Inspection") -> None:
        import yaml

        from fewchannels.models.family_file import as_fields

        self.evidence, self.doubts = list(found.evidence), list(found.doubts)
        self.text: str = yaml.safe_dump({found.transformer: as_fields(found.family)}, sort_keys=False)

    def save(self, path: str | Path) -> Path:
        """Write the family file, for the argument ``family`` and the option ``--family``.

        Raises:
            InputError: the file exists already, or cannot be written.
        """
        with in_python():
            check_output(Path(path))
            if Path(path).exists():
                raise InputError(f"{str(path)!r} already exists; give another name, or remove it.")
            write(Path(path), self.text.encode())
        return Path(path)

    def __repr__(self) -> str:
        return "\n".join([*self.evidence, *(f"doubtful: {each}" for each in self.doubts), "", self.text])


def inspect(pipe: "DiffusionPipeline", *, height: int = 384, width: int = 256) -> Inspected:
    """Locate the image stream of a pipeline whose transformer is not known, and describe it in a family file.

    Runs the pipeline a few dozen times for one step, perturbs its initial noise, and tracks which tokens change.

    Args:
        pipe: a loaded pipeline; float32 on a CPU gives the clearest answer.
        height: height of the test images, pixels.
        width: width of the test images, pixels; preferably different from the height.

    Raises:
        FewchannelsError: no list of blocks has an image stream that could be found.

    Example:
        >>> found = fc.inspect(pipe, height=32, width=24)
        >>> found.text.splitlines()[0]
        'FluxTransformer2DModel:'
    """
    from fewchannels.models.inspection import inspect_pipeline
    from fewchannels.models.load import quietly

    with in_python(), lent(pipe), quietly():
        return Inspected(inspect_pipeline(pipe, height, width))
