"""Copy channels from a recording's token maps, at the same layer and step."""

import numpy as np
import torch
from torch import Tensor

from fewchannels.api.calls.batch import Batch
from fewchannels.api.calls.call import Call
from fewchannels.api.calls.recorded import Recorded
from fewchannels.errors import InputError
from fewchannels.interventions.conditions import Condition
from fewchannels.models.family import ModelGeometry
from fewchannels.models.taps import Site, Tap
from fewchannels.runs.layout import Track


def replaying(source: Recorded, condition: Condition, call: Call, batch: Batch, geometry: ModelGeometry) -> Tap:
    """Create a tap that copies channels of a recording into the call's own rows.

    Args:
        source: recording of one sample, or of one sample for each of the call's.
        condition: condition that selects channels, layers and steps.
        call: the call.
        batch: rows of the transformer's batch.
        geometry: geometry of the model.

    Raises:
        InputError: the recording lacks a layer, a step, a branch or a map that the edit needs.
    """
    if source.n_samples not in (1, call.n_samples):
        raise InputError(
            f"the source has {source.n_samples} samples, but the call generates {call.n_samples} images. Record one "
            "sample, or one for each image."
        )
    grid = geometry.token_grid(call.settings.height, call.settings.width)
    if {each.token_grid for each in source.calls} != {grid}:
        raise InputError(
            f"the source's token grid differs from the call's, {grid[0]} x {grid[1]}. Use the same image size."
        )
    layout = source.layout
    if not layout.has_maps:
        raise InputError("the source has no token maps. Record it with top_k above 0 and the image stream.")
    layers = [block.layer for block in layout.blocks]
    for name, needed, held in (("layer", condition.layers, layers), ("step", condition.steps, layout.steps)):
        if missing := sorted(set(needed) - set(held)):
            raise InputError(f"the source does not have {name} {missing[0]}, which the edit needs. Record it too.")
    if condition.selection == "top" and condition.k > layout.top_k:
        raise InputError(
            f"the edit copies {condition.k} channels, but the source has maps of only {layout.top_k}. Record it with "
            f"top_k={condition.k}, or copy fewer channels."
        )
    data = source.activations
    of = [0 if source.n_samples == 1 else i for i in range(call.n_samples)]

    def tap(site: Site, x: Tensor) -> Tensor | None:
        layer, step = site.block.layer, site.forward.step
        if layer not in condition.layers or step not in condition.steps or site.stream != "image":
            return None
        prefix = Track("image", site.branch).prefix
        if prefix + "massive_value" not in data:
            raise InputError(
                f"the source does not have the {site.branch} branch, which the edit needs. Record it with branches="
                "('cond', 'uncond'), or edit branches='cond'."
            )
        at = {"step": layout.steps.index(step), "layer": layers.index(layer)}
        channels = data[prefix + "massive_channel"].isel(at).values
        values = data[prefix + "massive_value"].isel(at).values
        edited = x.clone()
        for row, sample in zip(batch.own, of, strict=True):
            places = _places(channels[sample], condition, site)
            chosen = torch.from_numpy(channels[sample][places].astype(np.int64)).to(x.device)
            maps = torch.from_numpy(values[sample][places]).to(x.device, x.dtype).T
            edited[row][:, chosen] = torch.lerp(x[row][:, chosen], maps, condition.amount)
        return edited

    return tap


def _places(channels: np.ndarray, condition: Condition, site: Site) -> list[int]:
    """Indices of the edit's channels among the channels whose maps were recorded."""
    if condition.selection == "top":
        return list(range(condition.k))
    held = channels.tolist()
    if missing := [each for each in condition.channels if each not in held]:
        raise InputError(
            f"the source does not have the map of channel {missing[0]} at layer {site.block.layer} in step "
            f"{site.forward.step}, where it is not among the {len(held)} largest. Record it with a larger top_k."
        )
    return [held.index(each) for each in condition.channels]
