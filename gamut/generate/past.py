"""What a conversation's prompts have in common: keys and values that the next turn need not make again.

    past = Past(model)
    for ids in prompts:                          # each goes on from the one before
        generate(model, [Prompt(ids, past=past)])

M mel bins
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gamut.models.decoder import Decoder
from gamut.nn.cache import Cache

SLOTS = 256  # a cache grows by so many


class Past:
    """The ids of one sequence with their keys and values. A prompt given with it is run from where the two differ, and
    leaves itself and its answer in it.

    For one conversation at a time; what was made with other weights must not be kept (make a new one).
    """

    def __init__(self, model: Decoder):
        self.model, self.cache = model, model.new_cache(1, 0)
        self.ids: list[int] = []
        self.sounds: Mapping[int, Float[Tensor, "M _"]] = {}
        self.user: object = None  # the prompt that goes on from here

    def keep(self, ids: Sequence[int], sounds: Mapping[int, Float[Tensor, "M _"]] | None = None) -> int:
        """Cut back to what ``ids`` begins with too, its last one apart (a new token needs the logits behind it).

        Args:
            sounds: what is heard in place of ids, by the position where each begins; a sound that differs from the one
                heard there before ends what is kept. None: there is none, or `keep` has seen them before.
        Returns:
            how many ids are kept.
        """
        most = min(len(ids) - 1, len(self.ids))
        kept = next((i for i in range(most) if ids[i] != self.ids[i]), max(0, most))
        if sounds is not None:
            changed = (at for at, new in sounds.items() if not _same(self.sounds.get(at), new))
            kept, self.sounds = min([kept, *changed]), sounds
        self.ids, self.cache.lengths[0], self.user = self.ids[:kept], kept, None
        return kept

    def room(self, slots: int) -> Cache:
        """The cache, with room for so many ids in all."""
        if self.cache.slots < slots:
            old = self.cache
            self.cache = self.model.new_cache(1, -(-slots // SLOTS) * SLOTS)
            self.cache.copy_row(0, old, 0)
        return self.cache

    @torch.inference_mode()
    def take(self, ids: Sequence[int], cache: Cache, row: int) -> None:
        """Become a copy of a row that holds these ids."""
        self.room(len(ids)).copy_row(0, cache, row)
        self.ids = list(ids)


def _same(old: Tensor | None, new: Tensor) -> bool:
    return old is new or (old is not None and torch.equal(old, new))
