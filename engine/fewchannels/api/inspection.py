"""``fc.inspect``: describe a loaded pipeline of an unknown model family."""

from pathlib import Path
from typing import TYPE_CHECKING

from fewchannels.api.messages import in_python
from fewchannels.api.models import lent
from fewchannels.errors import InputError
from fewchannels.files.durable import check_output, write
from fewchannels.settings.arguments import checked

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from fewchannels.models.inspection import Inspection


class Inspected:
    """A description of an unknown model, to be reviewed.

    Args:
        found: findings of the inspection.

    Attributes:
        evidence: one line for each finding, with its numbers.
        doubts: findings that are uncertain; empty if none is.
        text: the family file, YAML.
    """

    def __init__(self, found: "Inspection") -> None:
        import yaml

        from fewchannels.models.family_file import as_fields

        self.evidence, self.doubts = list(found.evidence), list(found.doubts)
        self.text: str = yaml.safe_dump({found.transformer: as_fields(found.family)}, sort_keys=False)

    @checked
    def save(self, path: str | Path) -> Path:
        """Write the family file, for the argument ``family`` and the option ``--family``.

        Raises:
            InputError: the file exists already, or cannot be written.
        """
        with in_python():
            check_output(Path(path))
            if Path(path).exists():
                raise InputError(f"{str(path)!r} already exists. Choose another name, or delete the file.")
            write(Path(path), self.text.encode())
        return Path(path)

    def __repr__(self) -> str:
        return "\n".join([*self.evidence, *(f"doubtful: {each}" for each in self.doubts), "", self.text])


@checked
def inspect(pipe: "DiffusionPipeline", *, height: int = 384, width: int = 256) -> Inspected:
    """Locate the image stream of a pipeline whose transformer class is unknown, and describe it in a family file.

    Runs the pipeline a few dozen times for one step, perturbs its initial noise, and tracks which tokens change.

    Args:
        pipe: a loaded pipeline; float32 on a CPU gives the most reliable result.
        height: height of the test images, pixels.
        width: width of the test images, pixels; preferably different from the height.

    Raises:
        FewchannelsError: no image stream was found in any list of blocks.

    Example:
        >>> found = fc.inspect(pipe, height=32, width=24)
        >>> found.text.splitlines()[0]
        'FluxTransformer2DModel:'
    """
    from fewchannels.models.inspection import inspect_pipeline
    from fewchannels.models.quiet import quietly

    with in_python(), lent(pipe), quietly("diffusers", "transformers"):
        return Inspected(inspect_pipeline(pipe, height, width))
