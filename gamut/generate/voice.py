"""A new voice for Token2Wav out of a recording: its tokens, its mel, and who speaks.

T samples · S channels of a speaker
Source: fact sheet step_audio_2 §6.1.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gamut.codecs.fbank import fbank
from gamut.codecs.flow import Voice
from gamut.codecs.s3_tokenizer import S3Tokenizer
from gamut.codecs.token2wav import Token2Wav
from gamut.io.media import resample
from gamut.models.speaker import SpeakerNet

HEARD = 16000  # Hz, of what the tokenizer and the speaker network hear
SHORTEST = 0.5  # s; ours


@torch.no_grad()
def voice_of(
    codec: Token2Wav, wav_T: Float[Tensor, " T"], rate: int, tokenizer: S3Tokenizer,
    speaker: SpeakerNet | Float[Tensor, " S"],
) -> Voice:
    """The voice of a recording at ``rate`` Hz.

    Args:
        speaker: a network, or a vector made elsewhere.
    Raises:
        ValueError: a recording of less than half a second, a tokenizer or a vector that does not fit the flow.
    """
    flow = codec.config.flow
    if len(wav_T) < SHORTEST * rate:
        raise ValueError(f"a voice needs a recording of at least {SHORTEST} s, got {len(wav_T) / rate:.2f} s")
    if tokenizer.vocab > flow.vocab:
        raise ValueError(f"the tokenizer has {tokenizer.vocab} tokens, the flow knows {flow.vocab}; take both from one "
                         f"release")  # fmt: skip
    heard = resample(wav_T, rate, HEARD)
    vector = speaker if isinstance(speaker, Tensor) else speaker(fbank(heard, centred=True)[None])[0]
    if len(vector) != flow.speaker:
        raise ValueError(f"this flow takes speaker vectors of {flow.speaker} numbers, got {len(vector)}")
    return codec.voice(tokenizer.encode(heard[None])[0], resample(wav_T, rate, codec.rate), vector)


def read_voice(
    codec: Token2Wav, folder: str | Path, wav_T: Float[Tensor, " T"], rate: int,
    vector: Float[Tensor, " S"] | None = None,
) -> Voice:
    """``voice_of`` with the networks of a converted token2wav folder; ``vector`` stands for its speaker network.

    Raises:
        ValueError: a network that the folder does not have, with the way to get it.
    """
    folder, needed = Path(folder), ["tokenizer"] if vector is not None else ["tokenizer", "speaker"]
    if missing := [name for name in needed if not (folder / name).is_dir()]:
        raise ValueError(f"'{folder}' has no {' and no '.join(missing)}; convert a token2wav folder with its .onnx "
                         f"files, or one alone: gamut convert FILE.onnx {folder / missing[0]}")
    speaker = SpeakerNet.from_pretrained(folder / "speaker") if vector is None else vector
    return voice_of(codec, wav_T, rate, S3Tokenizer.from_pretrained(folder / "tokenizer"), speaker)
