"""Keys and values of a decoder, allocated once and filled in place.

N layers · R rows · K key/value heads · S slots of a row · C channels per head · B rows in use (the first ones)
Slots are written and read as views: nothing is copied while decoding.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Cache:
    """Row r holds `lengths[r]` tokens in its first slots; whatever lies beyond is never looked at.

    A forward pass over B x T new tokens calls `begin`, then `put` once per layer, then `end`.
    """

    def __init__(self, layers: int, rows: int, kv_heads: int, slots: int, channels: int, **where):
        shape = (layers, rows, kv_heads, slots, channels)
        self.keys_NRKSC, self.values_NRKSC = torch.zeros(shape, **where), torch.zeros(shape, **where)
        self.rows, self.slots = rows, slots
        self.lengths = [0] * rows

    def begin(self, rows: int, tokens: int) -> None:
        """Announce `tokens` new ones in each of the first `rows` rows.

        Raises:
            ValueError: more rows, or more tokens, than there is room for.
        """
        if rows > self.rows:
            raise ValueError(f"the cache has {self.rows} rows, got a batch of {rows}; ask new_cache for more rows")
        used = self.lengths[:rows]
        self.stop = max(used) + tokens
        if self.stop > self.slots:
            raise ValueError(
                f"the cache holds {self.slots} tokens a row, got {self.stop}; ask new_cache for a longer one"
            )
        self._rows, self._tokens, self._even = rows, tokens, min(used) == max(used)
        if not self._even:
            steps_T = torch.arange(tokens, device=self.keys_NRKSC.device)
            self._where = torch.arange(rows, device=steps_T.device)[:, None], self.first() + steps_T

    def put(
        self, layer: int, k_BKTC: Float[Tensor, "B K T C"], v_BKTC: Float[Tensor, "B K T C"]
    ) -> tuple[Float[Tensor, "B K S C"], Float[Tensor, "B K S C"]]:
        """Write the new tokens of one layer; returns views of everything its rows hold, the longest row's length."""
        keys, values = self.keys_NRKSC[layer, : self._rows], self.values_NRKSC[layer, : self._rows]
        if self._even:
            fresh = slice(self.stop - self._tokens, self.stop)
            keys[:, :, fresh], values[:, :, fresh] = k_BKTC, v_BKTC
        else:
            row, slot = self._where
            keys[row, :, slot], values[row, :, slot] = k_BKTC.transpose(1, 2), v_BKTC.transpose(1, 2)
        return keys[:, :, : self.stop], values[:, :, : self.stop]

    def first(self) -> int | Int[Tensor, "B 1"]:
        """Position of the first new token: one number where all rows agree."""
        if self._even:
            return self.stop - self._tokens
        return torch.tensor(self.lengths[: self._rows], device=self.keys_NRKSC.device)[:, None]

    def visible(self) -> Bool[Tensor, "#B 1 T S"] | None:
        """Which slots each new token may see: those up to itself. None where that is all, or plain causal order."""
        if self._even and (self._tokens == 1 or self.stop == self._tokens):
            return None
        device = self.keys_NRKSC.device
        last = self.first() + torch.arange(self._tokens, device=device)
        seen = torch.arange(self.stop, device=device) <= last[..., None]
        return seen[None, None] if seen.dim() == 2 else seen[:, None]

    def end(self, counts: list[int] | None = None) -> None:
        """Keep the new tokens; `counts` says how many of each row are real (the rest was right padding)."""
        for row in range(self._rows):
            self.lengths[row] += self._tokens if counts is None else counts[row]

    def copy_row(self, row: int, source: "Cache", source_row: int) -> None:
        """Row `row` becomes a copy of a row of `source` (which may be this cache)."""
        length = source.lengths[source_row]
        for ours, theirs in ((self.keys_NRKSC, source.keys_NRKSC), (self.values_NRKSC, source.values_NRKSC)):
            ours[:, row, :, :length] = theirs[:, source_row, :, :length]
        self.lengths[row] = length
