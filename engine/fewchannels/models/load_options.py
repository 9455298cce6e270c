"""Loading options of a model, checked before loading and without the libraries that do it."""

import importlib.util
from dataclasses import dataclass, field

from fewchannels.errors import InputError, unknown
from fewchannels.files.contents import digests
from fewchannels.files.durable import expanded
from fewchannels.settings.ranges import LATER, Number, check, flag, parsed, text

OFFLOADS = ("none", "model", "sequential", "group")
QUANTIZATIONS = {
    "none": "",
    "bitsandbytes-8bit": "bitsandbytes",
    "bitsandbytes-4bit": "bitsandbytes",
    "torchao-int8": "torchao",
    "torchao-int4": "torchao",
    "torchao-float8": "torchao",
}
"""Ways to quantize the transformer, and the library that does it."""

EXTRAS = {"peft": "lora"}
"""Extras whose names differ from the library that they install."""

_STRENGTH = Number(-100, 100)


@dataclass(frozen=True)
class Loading:
    """Loading options of a model.

    Attributes:
        dtype: data type of the weights and arithmetic.
        offload: ``none``; ``model``: whole components move to the GPU while they run; ``sequential``: single layers do;
            ``group``: blocks do.
        quantization: quantization of the transformer's weights, a key of :data:`QUANTIZATIONS`.
        compile: whether each block's forward is compiled. Taps stay outside of it.
        attention: diffusers' attention backend of the transformer; None for its own.
        device_map: strategy of diffusers for spreading the components over several GPUs; None for one GPU.
        lora: adapters as ``FILE@STRENGTH``, comma-separated; None for none.
        transformer_file: a single file (safetensors or GGUF) whose weights replace the transformer's; None for none.
    """

    dtype: str = field(default="float32", metadata=text("Data type of the weights: float32, bfloat16 or float16."))
    offload: str = field(
        default="none", metadata=LATER | text("CPU offload, as in diffusers: model, sequential or group.")
    )
    quantization: str = field(
        default="none",
        metadata=LATER
        | text("Quantization of the transformer: bitsandbytes-8bit, -4bit, torchao-int8, -int4, -float8."),
    )
    compile: bool = field(default=False, metadata=LATER | flag("Compile each block with torch.compile."))
    attention: str | None = field(
        default=None, metadata=LATER | text("Attention backend of diffusers, such as native or flash.")
    )
    device_map: str | None = field(
        default=None, metadata=LATER | text("Distribution of one model over several GPUs: balanced.")
    )
    lora: str | None = field(default=None, metadata=LATER | text("LoRA adapters: FILE@STRENGTH, comma-separated."))
    transformer_file: str | None = field(
        default=None,
        metadata=LATER | text("Single file (safetensors, GGUF) whose weights replace the transformer's."),
    )

    def __post_init__(self) -> None:
        check(self)
        self.check_together()
        self.check_here()

    def check_together(self) -> None:
        """Refuse values that are unknown, or that do not work together.

        Raises:
            InputError: naming them.
        """
        if self.offload not in OFFLOADS:
            raise unknown("offload", self.offload, OFFLOADS)
        if self.quantization not in QUANTIZATIONS:
            raise unknown("quantization", self.quantization, QUANTIZATIONS)
        for other, value, reason in (
            ("offload", self.offload != "none", "both place the weights"),
            ("compile", self.compile, "compiled blocks stay on one device"),
        ):
            if self.device_map and value:
                raise InputError(f"device_map and {other} cannot be combined: {reason}. Omit one of them.")
        if self.compile and self.offload in ("sequential", "group"):
            raise InputError(
                f"compile and offload {self.offload!r} cannot be combined: weights that move inside a block cause it "
                "to recompile at every step. Use offload 'model' or 'none'."
            )
        if self.quantization.startswith("bitsandbytes") and self.offload in ("sequential", "group"):
            raise InputError(
                f"quantization {self.quantization!r} and offload {self.offload!r} cannot be combined: bitsandbytes' "
                "weights cannot be moved layer by layer. Use offload 'model' or 'none'."
            )
        if self.transformer_file and self.quantization != "none":
            raise InputError("transformer_file and quantization cannot be combined; a GGUF file is already quantized.")

    def check_here(self) -> None:
        """Reject options that need libraries, adapters or weights that this machine lacks.

        Raises:
            InputError: naming it.
        """
        needed = (
            (f"quantization {self.quantization!r}", QUANTIZATIONS[self.quantization]),
            ("lora", "peft" if self.lora else ""),
            ("a transformer_file in GGUF", "gguf" if str(self.transformer_file).endswith(".gguf") else ""),
        )
        for what, library in needed:
            if library and importlib.util.find_spec(library) is None:
                raise InputError(
                    f"{what} needs {library}, which is not installed: "
                    f'pip install "fewchannels[{EXTRAS.get(library, library)}]"'
                )
        for path in (*(path for path, _ in self.adapters()), self.transformer_file):
            if path is not None and not _is_file(path):
                raise InputError(f"there is no file {path!r}; adapters and transformer files must be local files.")

    def adapters(self) -> list[tuple[str, float]]:
        """File and strength of every LoRA adapter.

        Raises:
            InputError: one does not name a file, or a strength is not a number in the range.
        """
        found = []
        for part in self.lora.split(",") if self.lora else []:
            path, at, strength = part.strip().rpartition("@")
            file, strength = (path, strength) if at else (strength, "1")
            if not file:
                raise InputError(f"lora is {self.lora!r}, but one of its adapters has no file. Pass FILE@STRENGTH.")
            found.append((file, parsed(f"the strength of lora {file!r}", strength, _STRENGTH)))
        return found

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file that changes the weights, by its position in the settings."""
        files = [(f"lora.{i}", path) for i, (path, _) in enumerate(self.adapters())]
        files += [("transformer_file", self.transformer_file)] if self.transformer_file else []
        found = digests(path for _, path in files)
        return {name: found[path] for name, path in files}


def _is_file(path: str) -> bool:
    try:
        return expanded(path).is_file()
    except (OSError, RuntimeError):  # a name that is too long, or ~ without a home folder
        return False
