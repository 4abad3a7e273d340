"""A tiny speech codec that several test files share."""

import functools

import torch
from flows import lively

from gamut.codecs.flow import FlowConfig, Voice
from gamut.codecs.hift import HiFTConfig
from gamut.codecs.s3_tokenizer import S3Config, S3Tokenizer
from gamut.codecs.token2wav import Token2Wav, Token2WavConfig
from gamut.generate.voice import SpeechCodec


@functools.cache
def codec(levels: tuple[int, ...] = (3, 3), voices: tuple[str, ...] = ("a",)) -> SpeechCodec:
    """Random weights; as many tokens as ``levels`` allow, voices told by their timbre."""
    torch.manual_seed(0)
    tokenizer = S3Tokenizer(S3Config(mels=80, width=16, layers=1, heads=2, ffn=16, levels=levels)).eval()
    flow = FlowConfig(vocab=tokenizer.vocab, speaker=160, inputs=8, width=8, layers=1, up_layers=1, heads=2, ffn=8,
                      dit_width=8, dit_layers=1, dit_heads=2, dit_head_dim=4, steps=1)  # fmt: skip
    hift = HiFTConfig(width=16, block_kernels=(3,), source_kernels=(3, 3, 3), dilations=(1,), pitch_width=4)
    wave = lively(Token2Wav(Token2WavConfig(flow, hift)), scale=0.1)
    wave.voices = {name: Voice.of(torch.randn(160)) for name in voices}
    return SpeechCodec(tokenizer, wave)
