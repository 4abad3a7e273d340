"""Conformer encoders of Step-Audio's flows: relative attention and feed-forward blocks (no convolution module).

B batch · N tokens · T steps (tokens, or twice as many after upsampling) · S keys · D width · H heads · C channels
per head · R relative positions. Source: fact sheets step_audio §4.1, step_audio_2 §6.2-6.3; fixtures *_flow.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from gamut.nn.linear import Linear, linear

LARGEST = 4 << 30  # bytes of one layer's scores, which grow with the square of the length; ours


def check_length(rows: int, heads: int, steps: int, like: Tensor) -> None:
    """Raises ValueError where utterances are too long to be computed at once: 164 s of one at the released sizes."""
    if (size := rows * heads * steps * (2 * steps - 1) * like.element_size()) > LARGEST:
        raise ValueError(f"{rows} utterances of {steps} steps at once need {size / 2**30:.1f} GiB for the scores of a "
                         f"layer, at most {LARGEST >> 30}; take fewer or shorter ones, or, of Step-Audio 2's flow, "
                         f"a stream (Token2Wav.open)")


class Grown:
    """Keys and values of one stream, oldest first, in a buffer that doubles when it is full."""

    def __init__(self, layers: int, heads: int, channels: int, weight: Tensor):
        self.kv_L2HSC = weight.new_zeros(layers, 2, heads, 0, channels)
        self.length = 0

    def begin(self, steps: int) -> None:
        need, have = self.length + steps, self.kv_L2HSC.shape[3]
        if need > have:
            self.kv_L2HSC = F.pad(self.kv_L2HSC, (0, 0, 0, max(need, 2 * have) - have))

    def put(self, layer: int, k_1HTC: Tensor, v_1HTC: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values; returns views of all of them."""
        stop = self.length + k_1HTC.shape[2]
        self.kv_L2HSC[layer, 0, :, self.length : stop], self.kv_L2HSC[layer, 1, :, self.length : stop] = k_1HTC, v_1HTC
        return self.kv_L2HSC[layer, :1, :, :stop], self.kv_L2HSC[layer, 1:, :, :stop]

    def end(self, steps: int) -> None:
        self.length += steps


def positions(keys: int, steps: int, width: int, like: Tensor) -> Float[Tensor, "R D"]:
    """Sinusoids of the distances from the last key back to the first: keys - 1 down to -(steps - 1)."""
    away_R = torch.arange(keys - 1, -steps, -1, device=like.device, dtype=torch.float32)
    rates = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(1e4) / width))
    angles = away_R[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).to(like.dtype)


class RelativeAttention(nn.Module):
    """softmax(((q + u) k + shifted((q + v) p)) / sqrt(C)): content and distance scored apart (Transformer-XL)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide width; got width={width}, heads={heads}")
        self.heads = heads
        self.q, self.k, self.v, self.out = (Linear(width, width) for _ in range(4))
        self.position = Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, width // heads))
        self.position_bias = nn.Parameter(torch.zeros(heads, width // heads))

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        table_RD: Float[Tensor, "R D"],
        mask: Bool[Tensor, "#B 1 #T S"] | None = None,
        pasts: Sequence[Grown] | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "B T D"]:
        """``table_RD`` reaches as far as the longest row's keys; with ``pasts``, row b is the stream ``pasts[b]``."""
        q, k, v = (part(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        p_HCR = self.position(table_RD).unflatten(-1, (self.heads, -1)).permute(1, 2, 0)
        if pasts is None:
            y_BHTC = self._attend(q, k, v, p_HCR, mask)
        else:
            rows = [pasts[b].put(layer, k[b : b + 1], v[b : b + 1]) for b in range(len(x_BTD))]
            y_BHTC = torch.cat([self._attend(q[b : b + 1], *row, p_HCR, mask) for b, row in enumerate(rows)])
        return self.out(y_BHTC.transpose(1, 2).flatten(2))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, p_HCR: Tensor, mask: Tensor | None) -> Tensor:
        (steps, channels), keys = q.shape[2:], k.shape[2]
        far = p_HCR[..., p_HCR.shape[-1] - (keys + steps - 1) :]  # a shorter row uses the near end of the table
        bias = shifted((q + self.position_bias[:, None]) @ far)[..., :keys] / math.sqrt(channels)
        bias = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
        return F.scaled_dot_product_attention(q + self.content_bias[:, None], k, v, attn_mask=bias)


def shifted(scores_BHTR: Float[Tensor, "B H T R"]) -> Float[Tensor, "B H T R"]:
    """Entry (i, j) becomes (i, j + T - 1 - i): from distances to keys. Columns that have none are left over."""
    T, R = scores_BHTR.shape[-2:]
    return F.pad(scores_BHTR, (1, 0)).flatten(-2)[..., T:].unflatten(-1, (T, R))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, width: int, heads: int, ffn: int):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, 1e-12), RelativeAttention(width, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(width, 1e-12), Linear(width, ffn), Linear(ffn, width)

    def forward(self, x: Tensor, table: Tensor, mask: Tensor | None, pasts=None, layer: int = 0) -> Tensor:
        x = x + self.attn(self.norm1(x), table, mask, pasts, layer)
        return x + self.down(F.silu(self.up(self.norm2(x))))


class Entrance(nn.Module):
    """Linear, norm, times the root of the width."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.linear, self.norm = Linear(inputs, width), nn.LayerNorm(width, 1e-5)

    def forward(self, x: Float[Tensor, "B T I"]) -> Float[Tensor, "B T D"]:
        return self.norm(self.linear(x)) * math.sqrt(self.norm.normalized_shape[0])


class EncoderPast:
    """What one stream has behind it: keys and values at both rates, and the steps before each causal convolution."""

    def __init__(self, encoder: "UpsamplingConformer"):
        width, heads, weight = encoder.up.out_channels, encoder.heads, encoder.up.weight
        self.lower = Grown(len(encoder.blocks), heads, width // heads, weight)
        self.upper = Grown(len(encoder.up_blocks), heads, width // heads, weight)
        self.look_1KD = weight.new_zeros(1, encoder.look2.kernel_size[0] - 1, width)
        self.up_1KD = weight.new_zeros(1, encoder.up.kernel_size[0] - 1, width)


class UpsamplingConformer(nn.Module):
    """Step-Audio 2's: blocks at the rate of the tokens, then at twice that rate. A token sees ``ahead`` tokens that
    follow through a convolution; whatever else it sees of the future is the mask's business.
    """

    def __init__(
        self, inputs: int, width: int, layers: int, up_layers: int, heads: int, ffn: int, *, ahead: int = 3,
        factor: int = 2,
    ):
        super().__init__()
        self.ahead, self.factor, self.heads = ahead, factor, heads
        self.entrance, self.up_entrance = Entrance(inputs, width), Entrance(width, width)
        self.look1, self.look2 = nn.Conv1d(width, width, ahead + 1), nn.Conv1d(width, width, 3)
        self.blocks = nn.ModuleList(Block(width, heads, ffn) for _ in range(layers))
        self.up = nn.Conv1d(width, width, 2 * factor + 1)
        self.up_blocks = nn.ModuleList(Block(width, heads, ffn) for _ in range(up_layers))
        self.norm = nn.LayerNorm(width, 1e-5)

    def forward(
        self,
        x_BNI: Float[Tensor, "B N I"],
        counts_BN: Bool[Tensor, "B N"] | None = None,
        chunk: int | None = None,
    ) -> Float[Tensor, "B T D"]:
        """A whole utterance.

        Args:
            counts_BN: which tokens count (rows may be padded on the right); None: all.
            chunk: tokens; each sees its own chunk and all before. None: everything.
        Returns:
            ``factor`` steps per token; those of tokens that do not count mean nothing.
        Raises:
            ValueError: more than can be computed at once; see ``check_length``.
        """
        check_length(len(x_BNI), self.heads, x_BNI.shape[1] * self.factor, x_BNI)
        x = self.entrance(x_BNI)
        x = x if counts_BN is None else x * counts_BN[..., None]
        counts_BT = None if counts_BN is None else counts_BN.repeat_interleave(self.factor, 1)
        N = x.shape[1]
        fine = None if chunk is None else chunk * self.factor
        masks = seen(N, counts_BN, chunk, x.device), seen(N * self.factor, counts_BT, fine, x.device)
        return self._run(F.pad(x, (0, 0, 0, self.ahead)), masks, None)

    def advance(
        self, x_BNI: Float[Tensor, "B N I"], pasts: Sequence[EncoderPast], last: bool
    ) -> Float[Tensor, "B T D"]:
        """The next tokens of streams, one a row, which see each other and everything before.

        Args:
            x_BNI: the new tokens and, unless they are the ``last``, ``ahead`` more that are only looked at: they
                come again with the next call.
        Returns:
            ``factor`` steps per new token.
        """
        x = self.entrance(x_BNI)
        return self._run(F.pad(x, (0, 0, 0, self.ahead)) if last else x, (None, None), pasts)

    def _run(self, x: Tensor, masks: tuple, pasts: Sequence[EncoderPast] | None) -> Tensor:
        look = up = lower = upper = None
        if pasts is not None:
            look, up = torch.cat([past.look_1KD for past in pasts]), torch.cat([past.up_1KD for past in pasts])
            lower, upper = [past.lower for past in pasts], [past.upper for past in pasts]
        y, look = causal(self.look2, F.leaky_relu(convolved(self.look1, x)), look)
        x = self._blocks(self.blocks, x[:, : y.shape[1]] + y, masks[0], lower)
        x, up = causal(self.up, x.repeat_interleave(self.factor, 1), up)
        x = self._blocks(self.up_blocks, self.up_entrance(x), masks[1], upper)
        for b, past in enumerate(pasts or ()):
            past.look_1KD, past.up_1KD = look[b : b + 1], up[b : b + 1]
        return self.norm(x)

    def _blocks(self, blocks: nn.ModuleList, x: Tensor, mask: Tensor | None, pasts: Sequence[Grown] | None) -> Tensor:
        T = x.shape[1]
        table = positions(T + max((past.length for past in pasts or ()), default=0), T, x.shape[-1], x)
        for past in pasts or ():
            past.begin(T)
        for layer, block in enumerate(blocks):
            x = block(x, table, mask, pasts, layer)
        for past in pasts or ():
            past.end(T)
        return x


def causal(conv: nn.Conv1d, x_BTD: Float[Tensor, "B T D"], before_BKD: Tensor | None) -> tuple[Tensor, Tensor]:
    """A convolution over time that sees no later step, and the steps that the next call needs ``before`` (None: 0)."""
    left = conv.kernel_size[0] - 1
    before_BKD = x_BTD.new_zeros(len(x_BTD), left, x_BTD.shape[-1]) if before_BKD is None else before_BKD
    joined = torch.cat([before_BKD, x_BTD], 1)
    return convolved(conv, joined), joined[:, joined.shape[1] - left :]


def convolved(conv: nn.Conv1d, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B _ E"]:
    """``conv`` without padding, on steps that lie in rows. As one product it is 1.4 times as fast as the library's
    convolution for a streamed piece (dev/LOG.md), and nothing is transposed."""
    windows = x_BTD.unfold(1, conv.kernel_size[0], 1).flatten(2)
    return linear(windows, conv.weight.flatten(1), conv.bias)


def seen(
    steps: int, counts_BT: Bool[Tensor, "B T"] | None = None, chunk: int | None = None,
    device: torch.device | None = None,
) -> Bool[Tensor, "#B 1 #T T"] | None:
    """Which keys each step sees: those that count, up to the end of its own chunk. None where that is all of them.

    Source: fact sheet §6.5: step i sees j iff j < (i // chunk + 1) chunk.
    """
    mask = None if counts_BT is None else counts_BT[:, None, None]
    if chunk is None:
        return mask
    if chunk < 1:
        raise ValueError(f"a chunk needs at least 1 step, got {chunk}")
    at = torch.arange(steps, device=device) // chunk
    order = (at[None, :] <= at[:, None])[None, None]
    return order if mask is None else order & mask
