"""Own conversations: read from disk, refused line by line, batched, and learned from, whole and by adapters."""

import json

import pytest
import torch
from speeches import codec as small_codec

from gamut.codecs.weave import Marks
from gamut.data.conversations import vocabulary
from gamut.data.own import Own, read_conversations, split
from gamut.generate.tools import calculator
from gamut.generate.voice import SpeechCodec
from gamut.io.convert import export
from gamut.io.media import write_audio
from gamut.io.runs import Run
from gamut.models.audio_encoder import AudioEncoderConfig
from gamut.models.lm import LMConfig
from gamut.models.omni import Omni, OmniConfig
from gamut.train.tuning import finetune, loss, own_data, saved

WORDS = vocabulary(9, [calculator().schema])


def codec() -> SpeechCodec:
    torch.manual_seed(0)
    return small_codec()


def model() -> Omni:
    torch.manual_seed(0)
    lm = LMConfig(WORDS.vocab, 32, 2, 2, 1, 16, 48, qkv_bias=True, max_positions=512)
    audio = AudioEncoderConfig(width=16, layers=1, heads=2, ffn=64, positions=1300)
    marks = {f"audio_{name}_id": WORDS.id(f"<audio_{name}>") for name in ("start", "end", "patch")}
    return Omni(OmniConfig(lm, audio, 24, **marks))


def asked(file: str, answer, **more) -> dict:
    user = {"role": "user", "content": [{"type": "audio", "file": file}, {"type": "text", "text": "Well?"}]}
    system, own = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": answer}
    return {"messages": [system, user, own], **more}


@pytest.fixture
def folder(tmp_path):
    for k in range(4):
        write_audio(tmp_path / f"{k}.wav", torch.sin(torch.arange(4000 * (k + 1)) * 0.1) * 0.3, 8000)
    spoken = [{"type": "audio", "file": "3.wav", "text": "yes"}]
    lines = [asked(f"{k}.wav", f"number {k}") for k in range(3)] + [asked("0.wav", spoken, tools=[calculator().schema])]
    (tmp_path / "conversations.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return tmp_path


def test_a_conversation_becomes_what_the_model_hears_and_says(folder):
    own = Own(read_conversations(folder), WORDS, codec=codec())
    (ids, learn), mels, seconds = own.row(own.talked[2])
    assert len(mels) == 1 and seconds == 1.5 and ids.count(WORDS.id("<audio_patch>")) == 19
    assert WORDS.decode([i for i, mine in zip(ids, learn, strict=True) if mine]) == "number 2<|EOT|>"
    (ids, learn), _, _ = own.row(own.talked[3])
    marks = Marks.of(WORDS, 9)
    said = marks.audio_codes([i for i, mine in zip(ids, learn, strict=True) if mine])
    assert len(said) == 50 and "calculator" in WORDS.decode(ids)  # two seconds at 25 tokens
    for one in own.talked:  # measured as it will be read
        assert abs(len(own.row(one)[0][0]) - len(own.row(one, hear_it=False)[0][0])) <= 1


def test_every_conversation_comes_once_an_epoch_beside_its_like(folder):
    own = Own(read_conversations(folder), WORDS, tokens=300, codec=codec())
    rows = [own.batch(i) for i in range(4)]
    heard = sum(len(batch.mels_NMF) for batch in rows[:3])
    assert all(batch.ids_BT.numel() <= 320 for batch in rows) and heard >= 4
    assert torch.equal(own.batch(1).ids_BT, rows[1].ids_BT)


def test_a_folder_of_clips_with_transcripts_is_conversations_too(folder):
    (folder / "conversations.jsonl").unlink()
    (folder / "transcripts.csv").write_text("file,text\n0.wav,one two\n")
    [one] = read_conversations(folder, prompt="Write it down.")
    (ids, learn), _, _ = Own([one], WORDS).row(one)
    assert "Write it down." in WORDS.decode(ids)
    assert WORDS.decode([i for i, mine in zip(ids, learn, strict=True) if mine]) == "one two<|EOT|>"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 1 is not JSON"), ("[]", 'line 1 needs {"messages"'), ('{"messages": [{"role": "user"}]}', "needs"),
        (json.dumps(asked("9.wav", "x")), "line 1 names the sound '9.wav', which is not in"),
        (json.dumps({"messages": [{"role": "user", "content": "x"}]}), "line 1 has no assistant message"),
        (json.dumps({"messages": [{"role": "bot", "content": "x"}]}), "line 1 has the role 'bot'; allowed: system"),
        ("", "holds no conversations"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, line, why):
    (tmp_path / "c.jsonl").write_text(line)
    with pytest.raises(ValueError, match=why):
        read_conversations(tmp_path / "c.jsonl")


def test_what_does_not_fit_is_refused_before_training(folder):
    talked = read_conversations(folder)
    with pytest.raises(ValueError, match="line 4 has a spoken answer, which takes a codec that encodes"):
        Own(talked, WORDS)
    with pytest.raises(ValueError, match=r"line 1 takes \d+ positions, a batch has 20; cut it, or raise tokens"):
        Own(talked, WORDS, tokens=20, codec=codec())
    with pytest.raises(ValueError, match=r"neither a \.jsonl file of conversations nor a folder"):
        read_conversations(folder / "0.wav")
    with pytest.raises(ValueError, match="share held out must be at least 0 and below 1, got 1"):
        split(talked, 1.0)


def test_some_are_held_out(folder):
    talked = read_conversations(folder)
    train, test = split(talked, 0.25)
    assert len(train) == 3 and len(test) == 1 and test[0] not in train
    assert split(talked[:1], 0.25) == (talked[:1], [])


@pytest.mark.parametrize("rank", [0, 2])
def test_tuning_lowers_the_loss_and_leaves_the_encoder_alone(folder, tmp_path, rank):
    """Whole or by adapters; what was tuned is saved, and exported with the adapter merged or beside it."""
    tuned, start = model(), model()
    train, test = own_data(read_conversations(folder), lambda some: Own(some, WORDS, codec=codec()), 0.25)
    run = Run.create(tmp_path / "runs", "tune", {})
    batch = train.batch(0)
    before = loss(tuned, batch).item()
    finetune(tuned, train, test, run, steps=12, lr=3e-2, rank=rank)
    after = loss(tuned, batch).item()
    assert after < 0.8 * before
    moved = {name for name, weight in tuned.state_dict().items() if not torch.equal(weight, start.state_dict()[name])}
    assert not any(name.startswith("encoder.") for name in moved)
    assert any(name.startswith("adapter.") for name in moved) == (rank == 0) and "lm.blocks.0.attn.q.weight" in moved
    assert "eval/loss" in str(run.curves())
    path = saved(tuned, run, WORDS.files(), "tuned")
    again = Omni.from_pretrained(path)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in tuned.state_dict().items())
    if rank:
        start.save_pretrained(tmp_path / "base")
        merged = Omni.from_pretrained(export(tmp_path / "base", tmp_path / "hf", lora=run.path / "adapter", merge=True))
        torch.testing.assert_close(merged.lm.blocks[0].attn.q.weight, tuned.lm.blocks[0].attn.q.weight)
