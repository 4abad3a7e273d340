"""Step-Audio 2's and Step-Audio's flows: rows are independent, masks mean what they say, names go there and back."""

from dataclasses import replace

import pytest
import torch
from flows import CONFIG, flow, ids, lively, voice

from gamut.codecs.flow import Flow, FlowConfig, Voice, start
from gamut.codecs.flow_stream import Rules, begin
from gamut.codecs.flow_v1 import FlowV1, FlowV1Config
from gamut.evals.fixtures import Fixture
from gamut.io.keys import flow as keys
from gamut.io.meta import meta
from gamut.nn.conformer import UpsamplingConformer, positions, seen, shifted

V1 = FlowV1Config(
    vocab=50, speaker=6, mels=8, inputs=16, width=16, layers=1, heads=2, ffn=24, unet_channels=(16, 16), unet_blocks=1,
    unet_middle=1, unet_heads=2, unet_head_dim=8, steps=2,
)  # fmt: skip


def test_relative_positions_by_hand():
    """Row i, key j of T queries that are the last of S keys must meet the sinusoid of the distance S - T + i - j."""
    T, S, width = 3, 5, 4
    table = positions(S, T, width, torch.zeros(1))
    distances = torch.arange(S - 1, -T, -1.0)
    assert torch.allclose(table[:, 0], distances.sin()) and torch.allclose(table[:, 1], distances.cos())
    scores = distances.expand(1, 1, T, -1)  # a score that is the distance itself
    wanted = torch.tensor([[S - T + i - j for j in range(S)] for i in range(T)]).float()
    assert torch.equal(shifted(scores)[0, 0, :, :S], wanted)


def test_chunks_of_the_mask_by_hand():
    assert seen(4) is None
    assert seen(5, chunk=2)[0, 0].int().tolist() == [[1, 1, 0, 0, 0]] * 2 + [[1, 1, 1, 1, 0]] * 2 + [[1] * 5]
    counts = torch.tensor([[True, True, False]])
    assert seen(3, counts, 1)[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        seen(3, chunk=0)


@pytest.mark.parametrize("chunk", [2, 4])
def test_the_encoder_in_chunks_sees_no_chunk_that_follows(chunk):
    """But for the three tokens that its convolution looks ahead."""
    encoder = lively(UpsamplingConformer(6, 16, 2, 1, 2, 24))
    x = torch.randn(1, 12, 6)
    changed = x.clone()
    changed[:, 8:] += 1
    a, b = encoder(x, chunk=chunk), encoder(changed, chunk=chunk)
    safe = (8 - encoder.ahead) // chunk * chunk * encoder.factor
    assert torch.allclose(a[:, :safe], b[:, :safe], atol=1e-5) and (a[:, 16:] - b[:, 16:]).abs().max() > 0.1
    assert (encoder(x)[:, :safe] - encoder(changed)[:, :safe]).abs().max() > 1e-3  # unlike with full attention


def test_rows_of_other_lengths_do_not_matter():
    model = flow()
    rows, voices = [ids(5), ids(11, 1), ids(7, 2)], [voice(4), voice(2, 1), Voice.of(torch.ones(6), 8)]
    together = model.mels(rows, voices)
    assert [mel.shape for mel in together] == [(8, 10), (8, 22), (8, 14)]
    for row, one, mel in zip(rows, voices, together, strict=True):
        assert torch.allclose(model.mels([row], [one])[0], mel, atol=2e-5)


def test_voice_and_guidance_and_steps_are_heard():
    model, row = flow(), ids(6)
    base = model.mels([row], [voice()])[0]
    others = (
        model.mels([row], [voice(seed=1)]), model.mels([row], [voice()], guidance=0.0),
        model.mels([row], [voice()], steps=5), model.mels([row], [voice()], noise_MT=torch.zeros(8, 20)),
    )  # fmt: skip
    assert all(other[0].shape == base.shape and (other[0] - base).abs().max() > 1e-2 for other in others)
    louder = replace(voice(), speaker_S=3 * voice().speaker_S)  # only its direction counts
    assert torch.allclose(model.mels([row], [louder])[0], base, atol=1e-4)
    assert torch.equal(model.mels([row], [voice()])[0], base)


def test_half_precision_is_near():
    """The path stays fp32: only the velocities are rounded."""
    model, row = flow(), ids(9)
    mel = model.mels([row], [voice()])[0]
    half = model.to(torch.bfloat16).mels([row], [voice()])[0]
    assert half.dtype == torch.float32 and 0 < (half - mel).abs().mean() < 0.05 * mel.std()


def test_mean_and_std_are_undone():
    """A flow of normalised mels is the plain one on a rescaled prompt."""
    plain, scaled = flow(), flow(mean=-5.0, std=3.0)
    spoken = replace(voice(), mel_MT=voice().mel_MT * 3 - 5)
    mel = plain.mels([ids(6)], [voice()])[0]
    assert torch.allclose(scaled.mels([ids(6)], [spoken])[0], mel * 3 - 5, atol=1e-4)


def test_the_mel_of_a_voice_is_made_to_fit():
    mel = torch.arange(6.0).expand(8, 6)
    assert Voice.make(ids(2), mel, torch.ones(6)).mel_MT[0].tolist() == [0, 1, 2, 3]
    assert Voice.make(ids(4), mel, torch.ones(6)).mel_MT[0].tolist() == [0, 1, 2, 3, 4, 5, 5, 5]
    with pytest.raises(ValueError, match="a voice of 2 tokens needs a mel of about 4 frames"):
        Voice.make(ids(2), mel[:, :0], torch.ones(6))


def test_what_it_refuses():
    model = flow()
    with pytest.raises(ValueError, match=r"speech tokens must lie in \[0, 50\), got 0..50"):
        model.mels([torch.tensor([0, 50])], [voice()])
    with pytest.raises(ValueError, match="each utterance needs a voice"):
        model.mels([ids(3)], [])
    with pytest.raises(ValueError, match=r"the start must be \(8, at least 20\)"):
        model.mels([ids(6)], [voice()], noise_MT=torch.zeros(8, 10))
    with pytest.raises(ValueError, match="heads that divide width"):
        FlowConfig(width=10, heads=4)


def test_a_voice_must_fit_wherever_it_is_used():
    model, old, row = flow(), lively(FlowV1(V1)), ids(6)
    short, wide = replace(voice(3), mel_MT=torch.randn(8, 5)), Voice.of(torch.ones(7), 8)
    for use in (lambda one: model.mels([row], [one]), lambda one: begin(model, one, Rules.of(model))):
        with pytest.raises(ValueError, match=r"3 tokens, a mel of 8 x 6 frames; got 6 numbers and a mel of 8 x 5"):
            use(short)
        with pytest.raises(ValueError, match=r"speaker vector of 6 numbers.*got 7 numbers"):
            use(wide)
        with pytest.raises(ValueError, match=r"a mel of 8 x 0 frames; got 6 numbers and a mel of 80 x 0"):
            use(Voice.of(torch.ones(6)))
    assert old.mel(ids(12), short).isfinite().all()  # whose tokens are stretched to it
    with pytest.raises(ValueError, match=r"for its 0 tokens, a mel of 8 x no frames; got 6 numbers and a mel of 8 x 5"):
        old.mel(row, replace(short, ids_N=row[:0]))
    with pytest.raises(ValueError, match="got 7 numbers"):
        old.mel(row, wide)
    with pytest.raises(ValueError, match="at least 1 token, got 2 utterances without any"):
        model.mels([row[:0]] * 2, [Voice.of(torch.ones(6), 8)] * 2)


def test_what_is_too_long_at_once_is_refused_before_anything_is_computed():
    wanted = r"16386 steps at once need 4\.0 GiB for the scores of a layer, at most 4;.*a stream \(Token2Wav\.open\)"
    with pytest.raises(ValueError, match="1 utterances of " + wanted):
        flow().mels([ids(8193)], [Voice.of(torch.ones(6), 8)])
    with pytest.raises(ValueError, match="2 utterances of 11590 steps"):
        FlowV1(V1).mu(torch.zeros(2, 11590, dtype=torch.long))


def test_the_start_is_shared_and_begins_again():
    assert torch.equal(start(None, 8, 3, 4), start(None, 8, 0, 30)[:, 3:7])
    assert torch.equal(start(None, 8, 29999, 2)[:, 1:], start(None, 8, 0, 1))


def test_a_new_flow_says_nothing_yet():
    """Gates and the last layer begin at zero: the velocity of a new estimator is 0."""
    model = Flow(CONFIG)
    mel = model.mels([ids(4)], [voice()])[0]
    assert torch.allclose(mel, start(None, 8, 0, 16)[:, 8:])


@pytest.mark.parametrize("kind, config", [(Flow, CONFIG), (FlowV1, V1)])
def test_saved_flows_load(tmp_path, kind, config):
    model = lively(kind(config))
    model.save_pretrained(tmp_path / "flow")
    again = kind.from_pretrained(tmp_path / "flow")
    assert again.config == config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name, kind", [("step_audio_2_flow", "Flow"), ("step_audio_flow", "FlowV1")])
def test_names_go_there_and_back(golden, name, kind):
    weights = Fixture.read(golden / f"{name}.safetensors").weights
    back = keys.to_official(keys.to_ours(weights, kind), kind)
    assert back.keys() == weights.keys() and all(torch.equal(back[k], weights[k]) for k in weights)
    with pytest.raises(ValueError, match=r"\['a.weight'\] have no official name; allowed: those of io/keys/flow.py"):
        keys.to_official({"a.weight": torch.ones(1)}, kind)


@pytest.mark.parametrize(
    "kind, config, tensors, parameters",
    [(Flow, FlowConfig(), 605, 155_802_352), (FlowV1, FlowV1Config(), 1185, 105_399_040)],
)
def test_the_released_sizes(kind, config, tensors, parameters):
    with meta():
        model = kind(config)
    state = model.state_dict()
    assert len(state) == tensors and sum(t.numel() for t in state.values()) == parameters
    official = keys.to_official(state, kind.__name__)
    if kind is Flow:
        assert official["decoder.estimator.blocks.15.adaLN_modulation.1.weight"].shape == (4608, 512)
        assert official["encoder.pre_lookahead_layer.conv1.weight"].shape == (512, 512, 4)
    else:
        assert official["decoder.estimator.down_blocks.1.2.weight"].shape == (256, 256, 3)
        assert official["decoder.estimator.up_blocks.0.2.conv.weight"].shape == (256, 256, 4)


def test_configs_go_there_and_back():
    assert FlowConfig.from_dict(keys.config_from_official(keys.config_to_official(vars(CONFIG)))) == CONFIG
    with pytest.raises(ValueError, match="the estimator must take 4 x 80 channels"):
        keys.config_from_official({"estimator": {"in_channels": 240}})


def test_v1_lengths_follow_the_rates():
    model = lively(FlowV1(V1))
    assert FlowV1(FlowV1Config(**vars(V1) | {"token_rate": 41.6})).frames(50) == 103  # measured on the official code
    for tokens, prompt in ((20, 0), (9, 5), (20, 33)):
        spoken = Voice(ids(prompt // 3), torch.randn(8, prompt if prompt // 3 else 0), torch.ones(6))
        assert model.mel(ids(tokens), spoken).shape == (8, model.frames(tokens))
    with pytest.raises(ValueError, match="tokens for at least one mel frame, got 0 tokens"):
        model.mel(ids(0), Voice.of(torch.ones(6), 8))


def test_v1_loss_learns_and_drops_conditions():
    """With every row dropped the conditions get no gradient; otherwise they do."""
    model = lively(FlowV1(V1))
    mel, prompt, mask = torch.randn(2, 8, 10), torch.zeros(2, 8, 10), torch.ones(2, 1, 10)
    for drop, heard in ((0.1, False), (0.9, True)):
        model.zero_grad()
        mu = model.mu(torch.stack([ids(5), ids(5, 1)]))[..., :10]
        loss, _ = model.loss(mel, mu, model.spoken_by(torch.ones(2, 6)), prompt, mask, drop_B=torch.full((2,), drop))
        loss.backward()
        assert bool(model.embed.weight.grad.abs().sum() > 0) == heard and torch.isfinite(loss)
