"""The editing tap: edit every row of a batch at every block's output, and measure the size of the intervention.

``x <- x + a m p (r - x)``: ``a`` is the amount, ``m`` the channel mask, ``p`` the token mask, ``r`` the replacement. If
``r`` is another row of the same batch, it is transport, without a stored trajectory (arXiv 2605.13974).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fewchannels.interventions import channel_masks, token_masks
from fewchannels.interventions.conditions import EDITS, GUIDE, MEASURES, Condition
from fewchannels.interventions.rows import Row
from fewchannels.measures import STATISTICS
from fewchannels.measures.draws import cell_keys
from fewchannels.measures.scores import statistics, sum_squares
from fewchannels.models.taps import Site


@dataclass(frozen=True)
class Given:
    """Inputs of edits in addition to the hidden states.

    Attributes:
        score: the statistic that ranks channels.
        cluster_k: top channels that tokens are clustered by.
        ranks: each channel's rank ``(channel,)`` by layer, of the scores of a run; empty without one.
        inside: tokens ``(token,)`` bool inside each item's mask, by item.
        outside: tokens outside of it; tokens that the mask marks as unknown are in neither.
        n_steps: denoising steps of the batch.
    """

    score: str
    cluster_k: int
    ranks: Mapping[int, Tensor]
    inside: Mapping[int, Tensor]
    outside: Mapping[int, Tensor]
    n_steps: int


class Editor:
    """Edits one batch while it is generated.

    Args:
        rows: rows of the batch.
        given: inputs of the edits.
        n_channels: width of the hidden state.
    """

    def __init__(self, rows: Sequence[Row], given: Given, n_channels: int) -> None:
        self._batch, self._given, self._n_channels = rows, given, n_channels
        self._active: dict[tuple[int, int, str], _Rows | None] = {}
        self._alike: dict[tuple[int, ...], _Rows] = {}
        self._sums: Tensor | None = None  # on the model's device, which must not wait
        self._counts = torch.zeros(len(rows))

    def tap(self, site: Site, x: Tensor) -> Tensor | None:
        """Edit the rows whose conditions name this site; None if none does."""
        key = (site.block.layer, site.forward.step, site.stream)
        if key not in self._active:
            self._active[key] = self._rows(*key)
        rows = self._active[key]
        if rows is None:
            return None
        cell = _Cell(rows, self._given, site, x)
        edited_rows = cell.edited()
        edited = x.clone()
        edited[rows.place] = edited_rows
        if self._sums is None:
            self._sums = torch.zeros(len(MEASURES), len(self._batch), dtype=torch.float64, device=x.device)
        for sums, values in zip(self._sums, cell.measures(edited_rows), strict=True):
            sums[rows.place] += values
        self._counts[rows.place] += 1
        return edited

    def measures(self, row: int) -> dict[str, float | None]:
        """Size of a row's edit: columns of ``edits``, null if there was nothing to edit.

        If no channel or no token was chosen anywhere, ``n_channels`` is 0. For a guided row, they are those of its
        edited companion, without ``change``, since its own states are not edited.
        """
        condition = self._batch[row].condition
        if condition is not None and condition.action == GUIDE and self._batch[row].role == "edited":
            return self.measures(row - 1) | {"change": None}
        if self._sums is None or not self._counts[row]:
            return dict.fromkeys(MEASURES)
        means = dict(zip(MEASURES, (self._sums[:, row] / float(self._counts[row])).tolist(), strict=True))
        return means | {"change": means["change"] ** 0.5}

    def _rows(self, layer: int, step: int, stream: str) -> "_Rows | None":
        at = tuple(
            i
            for i, row in enumerate(self._batch)
            if (condition := _edits(row)) is not None
            and layer in condition.layers
            and condition.edits_in(step, self._given.n_steps)
            and stream in condition.streams
        )
        if at and at not in self._alike:
            self._alike[at] = _Rows(self._batch, at, self._n_channels)
        return self._alike[at] if at else None


def _edits(row: Row) -> Condition | None:
    """The condition that edits a row's hidden states; None for other rows."""
    condition = row.condition
    if condition is None or row.role not in ("edited", "disturbed"):
        return None
    if condition.action == GUIDE:
        return condition if row.role == "disturbed" else None
    return condition if condition.action in EDITS else None


class _Rows:
    """The rows that are edited at a site, with everything about them that does not depend on hidden states."""

    def __init__(self, batch: Sequence[Row], at: Sequence[int], n_channels: int) -> None:
        rows = [batch[i] for i in at]
        self.at, self.n_channels = torch.tensor(at), n_channels
        is_run = list(at) == list(range(at[0], at[-1] + 1))  # then its rows are a view, not a copy
        self.place = slice(at[0], at[-1] + 1) if is_run else self.at
        self.conditions = [condition for row in rows if (condition := row.condition) is not None]
        self.items = [row.item.item for row in rows]
        self.ids = np.array([int(row.item.item_id, 16) for row in rows], dtype=np.uint64)
        self.trials = np.array([condition.trial for condition in self.conditions])
        self.undisturbed = torch.tensor([row.undisturbed for row in rows])
        self.source = torch.tensor([row.undisturbed if row.source is None else row.source for row in rows])
        self.amount = torch.tensor([condition.amount for condition in self.conditions])
        actions = [condition.action for condition in self.conditions]
        self.by_action = {action: _where(actions, action) for action in set(actions)}
        self.selection = [condition.selection for condition in self.conditions]
        ends = [_ends(condition, n_channels) for condition in self.conditions]
        self.first, self.last = torch.tensor(ends).T
        scores = [condition.scores_from for condition in self.conditions]
        # For a union or an intersection, the target's ranks first and the source's second.
        of_source = torch.tensor([whose == "source" for whose in scores])
        of_own = torch.tensor([whose == "own" for whose in scores])
        self.scored = torch.where(of_source, self.source, torch.where(of_own, self.at, self.undisturbed))
        self.of_run = [i for i, whose in enumerate(scores) if whose == "run"]
        self.of_two = {word: _where(scores, word) for word in ("union", "intersection")}
        listed = [i for i, condition in enumerate(self.conditions) if condition.selection == "listed"]
        self.listed = {i: torch.tensor(self.conditions[i].channels) for i in listed}
        self.by_tokens = {
            word: _where([condition.tokens for condition in self.conditions], word)
            for word in ("foreground", "background", "target_foreground", "inside", "outside")
        }
        self.aligned = _where([condition.placement for condition in self.conditions], "aligned")

    @cached_property
    def kept_draws(self) -> Tensor:
        """Places of channels in each row's own draw, the same at every layer and step, ``(row, channel)``."""
        return channel_masks.draws(self.ids, self.trials, self.n_channels)


def _where(words: Sequence[str], word: str) -> list[int]:
    return [i for i, each in enumerate(words) if each == word]


def _ends(condition: Condition, n_channels: int) -> tuple[int, int]:
    """Range of ranks that a selection takes, ``[first, last)``."""
    if condition.selection == "all":
        return 0, n_channels
    if condition.selection == "bottom":
        return n_channels - condition.k, n_channels
    return 0, condition.k


class _Cell:
    """The edited rows at one site."""

    def __init__(self, rows: _Rows, given: Given, site: Site, x: Tensor) -> None:
        self._rows, self._given, self._site, self._x = rows, given, site, x
        self._own = x[rows.place]
        self._device = x.device
        self._lengths = None if site.lengths is None else torch.tensor(site.lengths)[rows.at].to(x.device)
        self._token_mask, self._counterpart = self._tokens()
        self._becomes = self._replacement()
        self._channel_mask, self._gain = self._channels()

    def edited(self) -> Tensor:
        """The rows after the edit, ``(row, token, channel)``."""
        rows, x = self._rows, self._own
        amount = rows.amount.to(self._device) * self._gain
        weight = (self._channel_mask * amount[:, None])[:, None, :].to(x.dtype)
        if self._token_mask is not None:
            weight = weight * self._token_mask[:, :, None]
        return torch.lerp(x, self._becomes, weight)

    def measures(self, edited: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(row,)`` each: channels, their share of the squares, share of tokens, and squared relative change.

        All are 0 if no channel or no token is chosen.
        """
        n = self._channel_mask.sum(dim=-1)
        energy = sum_squares(self._own)
        share = (energy * self._channel_mask).sum(dim=-1) / energy.sum(dim=-1)
        tokens = torch.ones_like(share) if self._token_mask is None else self._token_mask.float().mean(dim=-1)
        change = sum_squares(edited - self._own).sum(dim=-1) / energy.sum(dim=-1)
        chosen = (n > 0) & (tokens > 0)
        return n * chosen, torch.where(chosen, share, 0), tokens * chosen, torch.where(chosen, change, 0)

    def _replacement(self) -> Tensor:
        """New values of the selected channels, ``(row, token, channel)``; a view if all rows share one tensor."""
        rows = self._rows
        parts = {action: self._becomes_of(action, at) for action, at in rows.by_action.items()}
        if len(parts) == 1:
            (becomes,) = parts.values()
        else:
            becomes = torch.empty_like(self._own)
            for action, part in parts.items():
                becomes[rows.by_action[action]] = part
        if self._counterpart is not None:
            at, places = rows.aligned, self._counterpart
            becomes = becomes.clone()
            becomes[at] = becomes[at].gather(1, places[:, :, None].expand(-1, -1, becomes.shape[2]))
        return becomes

    def _becomes_of(self, action: str, at: list[int]) -> Tensor:
        """New values of rows with one action, ``(row, token, channel)``."""
        x = self._own[at] if len(at) < len(self._own) else self._own
        if action in ("zero", GUIDE):
            return x.new_zeros(()).expand_as(x)
        if action == "mean":
            return self._mean()[at].to(x.dtype).expand_as(x)
        if action == "shuffle":
            return x.gather(1, self._shuffled(at)[:, :, None].expand_as(x))
        source = self._rows.source[at]
        only = int(source[0])
        return self._x[only].expand_as(x) if bool((source == only).all()) else self._x[source]

    def _mean(self) -> Tensor:
        """Means over each row's own tokens, ``(row, 1, channel)``; tokens after them are zero."""
        if self._lengths is None:
            return self._own.float().mean(dim=1, keepdim=True)
        return self._own.float().sum(dim=1, keepdim=True) / self._lengths[:, None, None]

    def _shuffled(self, at: list[int]) -> Tensor:
        """A random order of each row's own tokens, ``(row, token)`` int64, drawn by sample, trial, layer and step."""
        rows, n_tokens = self._rows, self._own.shape[1]
        keys = cell_keys(1, rows.ids[at], rows.trials[at], self._site.block.layer, self._site.forward.step)
        numbers = cell_keys(0, keys[:, None], np.arange(n_tokens)[None]) >> np.uint64(11)  # below 2**53
        drawn = torch.from_numpy(numbers.astype(np.float64))
        if self._lengths is not None:
            tokens = torch.arange(n_tokens)
            padding = tokens >= self._lengths.cpu()[at][:, None]
            drawn = torch.where(padding, 2.0**53 + tokens, drawn)
        return drawn.argsort(dim=-1).to(self._device)

    def _scores(self, whose: Tensor) -> tuple[Tensor, Tensor]:
        """Ranks and mean squares of rows of the batch, each row once: ``(row, channel)`` each."""
        different, back = whose.unique(return_inverse=True)
        found = statistics(self._x[different])
        ranks = channel_masks.ranked(found[STATISTICS.index(self._given.score)])
        return ranks[back], found[STATISTICS.index("rms")].double().square()[back]

    def _channels(self) -> tuple[Tensor, Tensor]:
        """Channel masks ``(row, channel)`` bool, and factors of the change, ``(row,)``."""
        rows, site = self._rows, self._site
        ranks, energy = self._scores(rows.scored)
        if rows.of_run:
            ranks[rows.of_run] = self._given.ranks[site.block.layer].to(self._device)
        first, last = rows.first.to(self._device), rows.last.to(self._device)
        places = ranks.clone()
        if kept := _where(rows.selection, "random"):
            places[kept] = rows.kept_draws[kept].to(self._device)
        if redrawn := _where(rows.selection, "redrawn"):
            drawn = channel_masks.draws(
                rows.ids[redrawn], rows.trials[redrawn], rows.n_channels, site.block.layer, site.forward.step
            )
            places[redrawn] = drawn.to(self._device)
        mask = channel_masks.between(places, first, last)
        for word, at in rows.of_two.items():
            if at:
                other = channel_masks.between(self._scores(rows.source[at])[0], first[at], last[at])
                mask[at] = mask[at] | other if word == "union" else mask[at] & other
        for i, channels in rows.listed.items():
            mask[i] = False
            mask[i, channels] = True
        for i in _where(rows.selection, "matched"):
            mask[i] = channel_masks.matched(ranks[i : i + 1], energy[i : i + 1], rows.conditions[i].k)[0]
        gain = torch.ones(len(mask), device=self._device)
        if scaled := _where(rows.selection, "scaled"):
            change = (self._becomes[scaled].float() - self._own[scaled].float()).square_()
            if self._token_mask is not None:
                change = change * self._token_mask[scaled][:, :, None]
            change = change.sum(dim=1)
            draws = rows.kept_draws[scaled].to(self._device)
            for j, i in enumerate(scaled):
                k = rows.conditions[i].k
                mask[i] = channel_masks.others(ranks[i : i + 1], draws[j : j + 1], k)[0]
                gain[i] = channel_masks.balance(change[j : j + 1], ranks[i : i + 1] < k, mask[i : i + 1])[0]
        return mask, gain

    def _tokens(self) -> tuple[Tensor | None, Tensor | None]:
        """Token masks ``(row, token)`` bool, None for all; of aligned rows, where each token's counterpart is."""
        rows = self._rows
        if not any(rows.by_tokens.values()):
            return None, None
        mask = torch.ones(self._own.shape[:2], dtype=torch.bool, device=self._device)
        clusters = rows.by_tokens["foreground"] + rows.by_tokens["background"]
        if clusters:
            mask[clusters] = self._front(rows.source, clusters)
            mask[rows.by_tokens["background"]] ^= True
        if targets := rows.by_tokens["target_foreground"]:
            mask[targets] = self._front(rows.undisturbed, targets)
        for word, given in (("inside", self._given.inside), ("outside", self._given.outside)):
            for i in rows.by_tokens[word]:
                mask[i] = given[rows.items[i]].to(self._device)
        counterpart = None
        if rows.aligned:
            counterpart, mask[rows.aligned] = token_masks.aligned(
                mask[rows.aligned], self._front(rows.undisturbed, rows.aligned), self._site.forward.token_grid
            )
        return mask, counterpart

    def _front(self, whose: Tensor, at: list[int]) -> Tensor:
        """The foreground of two clusters of rows of the batch, ``(row, token)`` bool."""
        different, back = whose[at].unique(return_inverse=True)
        x = self._x[different]
        ranks = channel_masks.ranked(statistics(x)[STATISTICS.index(self._given.score)])
        ids = self._rows.ids[at]
        first = [int((back == i).nonzero()[0]) for i in range(len(different))]
        k = min(self._given.cluster_k, x.shape[2])
        found = token_masks.two_clusters(x, ranks, k, ids[first], self._site.block.layer, self._site.forward.step)
        return found[back]
