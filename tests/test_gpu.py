"""What runs where there is a GPU runs on a pretended one: every training step, speech both ways, a conversation."""

import copy
import functools
import json
import warnings
from dataclasses import replace

import pytest
import torch
from pretended_gpu import CPU, CUDA, PLACES, RefusedError, gpu
from speeches import codec as small_codec
from test_examined import NAMES
from test_examined import clips as tones
from test_spoken import clips as spoken
from test_tokenizing import TINY as TOKENIZER
from test_tokenizing import tones as digit_tones
from test_vocoding import SMALL as VOCODER
from torch import Tensor, nn

from gamut.api import run as run_recipe
from gamut.codecs.flow import Flow
from gamut.codecs.hift import HiFT
from gamut.codecs.s3_reader import S3Reader
from gamut.codecs.s3_tokenizer import S3Tokenizer
from gamut.data.conversations import Conversations, vocabulary
from gamut.data.crops import Crops
from gamut.data.listening import digit_batch
from gamut.data.load import Batches
from gamut.data.orders import Orders, menu
from gamut.data.reading import strings
from gamut.data.scripts import World
from gamut.data.sources import Clip
from gamut.data.spoken import Digits
from gamut.data.voiced import voiced
from gamut.evals.conversations import examine, library
from gamut.evals.judges import hear
from gamut.evals.tokens import read_digits
from gamut.generate.chatting import Talk
from gamut.generate.sampling import Sampling
from gamut.generate.speak import collect
from gamut.generate.speaker import Speaker
from gamut.generate.voices import four_tools
from gamut.io.media import write_audio
from gamut.io.runs import Run
from gamut.models.audio_encoder import AudioEncoderConfig
from gamut.models.decoder import LMConfig
from gamut.models.judge import DigitJudge, DigitJudgeConfig, ctc
from gamut.models.omni import Omni, OmniConfig
from gamut.nn.attention import Attention, same_segment
from gamut.nn.critics import Critics
from gamut.recipes import step_audio_2 as recipe
from gamut.recipes.step_audio_2_codec import flow_step
from gamut.train import dist
from gamut.train.hearing import learn_to_hear
from gamut.train.loop import fit
from gamut.train.optim import Optim
from gamut.train.tokenizing import train_tokenizer
from gamut.train.vocoding import train_against_critics, train_reconstruction


@pytest.fixture(autouse=True)
def one_gpu():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with gpu():
            yield


@functools.cache
def world() -> World:
    slots = [{"coffeeDrink": "latte"}, {"coffeeDrink": "mocha", "size": "small"}]
    made = [Clip(torch.randn(16000) * 0.1, 16000, "a latte", labels={"slots": slots[i % 2]}) for i in range(6)]
    return World(Digits(tones()), NAMES, Orders(made))


@functools.cache
def tools():
    return four_tools(library(world().digits, NAMES), menu(world().orders))


@functools.cache
def words():
    return vocabulary(9, tools().schemas, world().orders)


def omni(**audio) -> Omni:
    torch.manual_seed(0)
    lm = LMConfig(words().vocab, 32, 2, 2, 1, 16, 48, qkv_bias=True, max_positions=2048)
    encoder = AudioEncoderConfig(width=16, layers=1, heads=2, ffn=32, positions=1300, **audio)
    marks = {f"audio_{name}_id": words().id(f"<audio_{name}>") for name in ("start", "end", "patch")}
    return Omni(OmniConfig(lm, encoder, 24, **marks)).eval()


def codec():
    return copy.deepcopy(small_codec())


def tone(seconds: float, rate: int = 16000) -> Tensor:
    return torch.sin(torch.arange(int(seconds * rate)) * 0.1) * 0.5


def learned_there(module: nn.Module) -> bool:
    return all(PLACES.of(p) == CUDA and p.isfinite().all() for p in module.parameters())


def test_a_pretended_gpu_refuses_what_a_gpu_refuses():
    linear, x = nn.Linear(3, 2).to("cuda"), torch.ones(1, 3)
    assert (str(linear(x.cuda()).device), str(x.device)) == ("cuda:0", "cpu")
    with pytest.raises(RefusedError, match="addmm"):
        linear(x)
    with pytest.raises(RefusedError, match="numpy"):
        linear(x.cuda()).detach().numpy()
    with pytest.raises(RefusedError, match="generator"):
        torch.rand(2, device="cuda", generator=torch.Generator())
    with pytest.raises(RefusedError, match="no product"):
        torch.ones(2, 2, dtype=torch.long, device="cuda") @ torch.ones(2, 2, dtype=torch.long, device="cuda")
    x = x.requires_grad_()
    linear(x.to("cuda")).sum().backward()
    assert x.grad is not None and str(x.grad.device) == "cpu"


def test_an_encoder_learns_to_hear(tmp_path):
    encoder = omni(edge="closed").encoder.to("cuda")
    learn_to_hear(encoder, world().digits, world().digits, world().orders, Run.create(tmp_path, "x", {}), steps=4,
                  lr=1e-3, batch=2)  # fmt: skip
    assert learned_there(encoder)


def test_every_stage_of_talking_and_on_from_a_checkpoint(tmp_path):
    voices = {name: Digits(world().digits.clips, (name,)) for name in NAMES}
    talks = Conversations(world(), voices, codec(), words(), tools().schemas, 0)
    cfg, run = recipe.Config(align_steps=2, main_steps=2, sft_steps=2, batch=3), Run.create(tmp_path, "x", {})
    for more in (0, 2):
        model = omni(edge="closed").to("cuda")
        recipe.learn_to_talk(replace(cfg, sft_steps=2 + more), model, talks, "tones", run)
        assert learned_there(model)
    assert [step for step, _ in run.curves()["sft"]["loss"]] == [1, 2, 3, 4]


@pytest.mark.parametrize("rank", [0, 2])
def test_tuning_on_own_sounds_and_its_evaluation(tmp_path, rank):
    Speaker(omni(edge="closed"), words(), codec(), tools()).save(tmp_path / "m")
    (tmp_path / "m" / "taught.json").unlink(missing_ok=True)
    lines = []
    for k in range(4):
        write_audio(tmp_path / "data" / f"{k}.wav", tone(0.2 * (k + 1), 8000), 8000)
        sound = {"type": "audio", "file": f"{k}.wav"}
        answer = [sound | {"text": "yes"}] if k % 2 else f"number {k}"
        lines.append({"messages": [{"role": "user", "content": [sound]}, {"role": "assistant", "content": answer}]})
    (tmp_path / "data" / "conversations.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = run_recipe("step_audio_2_tune", out=tmp_path, name="tuned", init=str(tmp_path / "m"), steps=2, every=2,
                        data=str(tmp_path / "data"), lora_rank=rank, share=0.3, exam=2)  # fmt: skip
    assert 0 < result.metrics["loss"] < 20


@pytest.mark.parametrize("aligned", [True, False])
def test_a_tokenizer_learns_and_is_measured(aligned):
    torch.manual_seed(0)
    reader, digits = S3Reader(S3Tokenizer(TOKENIZER), labels=10, layers=1).to("cuda"), digit_tones(10)
    train_tokenizer(reader, lambda index: strings(digits, 2, index, 0, mels=32), steps=2, aligned=aligned)
    assert learned_there(reader) and 0 <= read_digits(reader, digits)["tokens/read"] <= 1


def test_a_flow_learns():
    there, digits = codec(), Digits(spoken())
    flow: Flow = there.wave.flow.to("cuda")
    data = Batches(lambda index: voiced(digits, there.tokenizer.encode, 2, 12, index, 0))
    fit(flow_step(flow), flow, data, steps=3, optim=Optim(1e-3, ema=0.9))
    assert learned_there(flow)


def test_a_vocoder_learns_against_critics():
    time = torch.arange(6400) / 8000
    clips = [Clip((2 * torch.pi * hz * time).sin(), 8000, "") for hz in (120.0, 200.0)]
    torch.manual_seed(0)
    hift, critics = HiFT(VOCODER), Critics((2,), (240,), 1 / 8).to("cuda")
    crops = Crops(clips, 24000, 480, hift.encode)
    hift.to("cuda")
    train_reconstruction(hift, crops, None, steps=2, batch=2, frames=9)
    train_against_critics(hift, critics, crops, None, steps=2, batch=2, frames=9)
    assert learned_there(hift) and learned_there(critics)


def test_a_judge_learns_and_listens():
    judge = DigitJudge(DigitJudgeConfig(width=8)).to("cuda")
    mel, frames, labels = dist.move(digit_batch(Digits(spoken()), 2, 0, 0), CUDA)
    ctc(judge(mel), frames, labels).backward()
    assert all(p.grad is not None and PLACES.of(p.grad) == CUDA for p in judge.parameters())
    assert 0 <= hear(judge.eval(), tone(1.0, 8000))[1] <= 1


def test_speech_there_and_back_whole_and_streamed():
    """What it gives lies on the CPU, and is what the CPU gives."""
    plain, there = codec(), codec().to("cuda")
    sound, clip = torch.stack([tone(2.0), tone(2.0)]), tone(1.0, 8000)
    ids = there.encode(sound)
    assert PLACES.of(ids) == CUDA and torch.equal(ids.cpu(), plain.encode(sound))
    made, wanted = there.decode(ids, there.voice_of(clip, 8000)), plain.decode(ids.cpu(), plain.voice_of(clip, 8000))
    assert PLACES.of(made) == CPU
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)
    with there.streaming(2) as stream:
        parts = [stream.decode(part) for part in (*ids.split(30, 1), *ids.cpu().split(30, 1))]
        assert all(PLACES.of(part) == CPU for part in [*parts, stream.flush()])


def test_a_conversation_with_sound_in_and_out_and_tools():
    speaker = Speaker(omni().to("cuda", torch.bfloat16), words(), codec().to("cuda"), tools())
    how = Sampling(temperature=0.8, top_p=0.9, top_k=50, repetition_penalty=1.1, max_new=30, seed=3)
    talk = Talk(speaker, "Answer aloud.", tools=True, meanwhile="Say so.", patience=0.0, sampling=how)
    for wav, text in ((tone(1.0), ""), (tone(27.0), "and"), (None, "more")):
        assert collect(talk.ask(wav, 16000, text)).wav.isfinite().all()
    assert len(talk.mels) == 3  # 27 s are heard in two pieces


def test_an_examination_with_all_of_it_on_the_gpu(monkeypatch):
    monkeypatch.setattr("gamut.evals.conversations.LONGEST", 8)
    speaker = Speaker(omni().to("cuda"), words(), codec().to("cuda"), tools())
    configs = DigitJudgeConfig(width=8), DigitJudgeConfig(width=8, classes=2, names=NAMES)
    judges = [DigitJudge(config).eval().to("cuda") for config in configs]
    found, _ = examine(speaker, *judges, replace(world(), vary=False), library(world().digits, NAMES),
                       menu(world().orders), each=1, levels=(20.0,))  # fmt: skip
    assert {"digits/wer", "arithmetic/aloud", "aloud/resynthesised", "voice/recognised"} <= set(found)


def test_masked_attention_without_groups_is_the_same():
    """A GPU's kernels that take masks know no groups: keys and values are repeated there."""
    torch.manual_seed(0)
    attention, x = Attention(32, 4, 2, 8), torch.randn(2, 7, 32)
    mask = same_segment(torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 2))
    wanted = attention(x, mask=mask)
    torch.testing.assert_close(attention.to("cuda")(x.to("cuda"), mask=mask.to("cuda")).cpu(), wanted)
