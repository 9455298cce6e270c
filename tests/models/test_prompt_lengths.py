"""What a run says of its prompts' tokens, against what the text encoders were given."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import CASES

from fewchannels.manifest import Sample
from fewchannels.models.generation import Settings
from fewchannels.models.load import load
from fewchannels.models.load_options import Loading
from fewchannels.models.sampler import Sampler
from fewchannels.models.source import find, geometry

# DiT has no text; the edits of Qwen-Image cut no prompt, and Qwen-Image and HunyuanImage let the 34 tokens go that
# their real tokenizers make of a template, which a tiny one does not.
# SANA's instruction and prompt are one text, and how many tokens meet at its seam is the tokenizer's affair.
_OTHERS = ("dit", "qwen-image", "hunyuan-image", "sana")
CUTTING = {case.name: case for case in CASES if not case.name.startswith(_OTHERS)}


class _EncodedError(Exception):
    pass


def opened(name: str, folder: Path) -> tuple[Sampler, Callable[[str], torch.Tensor]]:
    """A sampler, and what gives the ids that reach the encoder whose tokenizer measures prompts."""
    case = CUTTING[name]
    case.build().save_pretrained(folder)
    shape = geometry(find(str(folder)))
    sampler = Sampler(load(find(str(folder)), shape, Loading(), "cpu"), shape)
    encoder = sampler.pipeline.components[shape.pipeline.tokenizer.replace("tokenizer", "text_encoder")]

    def given(prompt: str) -> torch.Tensor:
        def keep(module: torch.nn.Module, arguments: tuple, keywords: dict) -> None:
            ids.append(keywords["input_ids"] if "input_ids" in keywords else arguments[0])
            raise _EncodedError

        ids: list[torch.Tensor] = []
        hook = encoder.register_forward_pre_hook(keep, with_kwargs=True)
        settings = Settings(*case.square, 2, **({"guidance": 1.0, "true_cfg_scale": 1.0} | case.unguided))
        try:
            with pytest.raises(_EncodedError):
                sampler.generate([Sample("0", prompt, 1)], settings)
        finally:
            hook.remove()
        return ids[0]

    return sampler, given


@pytest.mark.parametrize("name", CUTTING)
def test_a_prompt_is_said_to_be_cut_when_its_end_does_not_reach_the_encoder(name: str, tmp_path: Path) -> None:
    sampler, given = opened(name, tmp_path)
    tokenizer = sampler.pipeline.components[sampler.geometry.pipeline.tokenizer]
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)

    def is_cut(n_words: int) -> bool:
        return sampler.prompt_lengths(["star " * (n_words - 1) + "ring"])[0][1]

    few, many = 1, sampler.max_prompt_tokens() + 1
    assert not is_cut(few)
    assert is_cut(many)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if is_cut(middle) else (middle, many)
    for n_words, cut in ((few, False), (many, True)):
        prompt = "star " * (n_words - 1) + "ring"
        # Its first word may be other tokens behind a template's text.
        own = tokenizer(prompt, add_special_tokens=False).input_ids[1 - n_words :]
        reached = given(prompt)[-1].tolist()
        whole = any(reached[i : i + len(own)] == own for i in range(len(reached)))
        assert whole is not cut, (
            f"{n_words} words of {len(own) + 1} tokens are said to be cut: {cut}; the encoder got {len(reached)}"
        )


@pytest.mark.parametrize("name", ["pixart-alpha", "pixart-sigma"])
def test_a_prompt_is_counted_as_it_is_encoded(name: str, tmp_path: Path) -> None:
    sampler, given = opened(name, tmp_path)
    prompt = "  A Small RED Star "
    ids = given(prompt)[-1]
    assert sampler.prompt_lengths([prompt]) == [(int((ids != sampler.pipeline.tokenizer.pad_token_id).sum()), False)]
