"""Parity of the flows: Step-Audio 2's offline and streamed, Step-Audio's with its training loss."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gamut.codecs.flow import Flow, FlowConfig, Voice
from gamut.codecs.flow_stream import Rules, advance, begin
from gamut.codecs.flow_v1 import SIGMA, FlowV1, FlowV1Config
from gamut.evals.fixtures import Fixture, Ours
from gamut.io.folders import load_strict
from gamut.io.keys import flow as keys
from gamut.losses.flow import path
from gamut.nn.ode import cosine


def run_flow(fixture: Fixture) -> dict[str, Ours]:
    """Step-Audio 2. The pieces of the stream are as long as out.stream.mel.k says they were."""
    given = fixture.inputs
    flow = Flow(FlowConfig.from_dict(keys.config_from_official(fixture.config, fixture.weights)))
    load_strict(flow.eval(), keys.to_ours(fixture.weights), fixture.path)
    voices, noise = _voices(given, ""), given["noise"][0]
    ours = {"mel": Ours(torch.stack(flow.mels(list(given["token"]), voices, noise_MT=noise)))}
    ours["spk_proj"] = Ours(flow.spoken_by(given["spk"]))
    ours["mu"] = Ours(flow.mu(torch.cat([given["prompt_token"], given["token"]], 1)).transpose(1, 2))
    if "dit.x" in given:
        x, mu, prompt = (given[f"dit.{name}"].transpose(1, 2) for name in ("x", "mu", "cond"))
        seen = given["dit.mask"].bool()[:, None]
        velocity = flow.velocity(x, given["dit.t"], mu, given["dit.spks"], prompt, seen)
        ours["dit"] = Ours(velocity.transpose(1, 2))
    names = [name for name in fixture.outputs if name.startswith("stream.mel.")]
    names.sort(key=lambda name: int(name.rpartition(".")[2]))
    states = [begin(flow, voice, Rules.of(flow), noise) for voice in voices]
    at, tokens = 0, given["token"].shape[1]
    for name in names:
        end = at + fixture.outputs[name].shape[-1] // flow.config.factor
        last = end >= tokens
        ids_BN = given["token"][:, at : end if last else end + flow.config.ahead]
        ours[name], at = Ours(advance(flow, states, ids_BN, last, noise)), end
    return ours


def run_flow_v1(fixture: Fixture) -> dict[str, Ours]:
    """Step-Audio: with a prompt, inputs and outputs named noprompt.* without one, one call of the U-Net, the loss."""
    given = fixture.inputs
    flow = FlowV1(FlowV1Config.from_dict(keys.v1_config_from_official(fixture.config, fixture.weights)))
    load_strict(flow.eval(), keys.to_ours(fixture.weights, "FlowV1"), fixture.path)
    ours = {}
    for case in ("", "noprompt."):
        if f"{case}token" not in given:
            continue
        ids_BN = given[f"{case}token"]
        voices = [Voice.of(speaker, flow.config.mels) for speaker in given["spk"]] if case else _voices(given, case)
        noises = given[f"{case}noise"]
        rows = zip(ids_BN, voices, noises, strict=True)
        ours[f"{case}mel"] = Ours(torch.stack([flow.mel(ids, voice, noise_MT=noise) for ids, voice, noise in rows]))
        ours[f"{case}spk_proj"] = Ours(flow.spoken_by(given["spk"]))
        prompts_BN = torch.stack([voice.ids_N for voice in voices])
        frames = voices[0].mel_MT.shape[1]
        ours[f"{case}mu"] = Ours(flow.mu(torch.cat([prompts_BN, ids_BN], 1), prompts_BN.shape[1], frames))
    if "unet.x" in given:
        names = ("x", "t", "mu", "spks", "cond", "mask")
        ours["unet"] = Ours(flow.velocity(*(given[f"unet.{name}"] for name in names)))
    if "loss.x1" in given:
        x1, mu, spks, cond, mask = (given[f"loss.{name}"] for name in ("x1", "mu", "spks", "cond", "mask"))
        uniform, noise = given["loss.t_uniform"], given["loss.z"]
        loss, _ = flow.loss(x1, mu, spks, cond, mask, uniform_B=uniform, drop_B=given["loss.drop_uniform"], noise=noise)
        ours["loss"] = Ours(loss.reshape(fixture.outputs["loss"].shape))
        ours["loss.y"] = Ours(path(x1, noise, cosine(uniform), SIGMA)[0])
    return ours


def _voices(given: Mapping[str, Tensor], prefix: str) -> list[Voice]:
    ids, mels = given[f"{prefix}prompt_token"], given[f"{prefix}prompt_mel"]
    return [Voice(i, m.T, s) for i, m, s in zip(ids, mels, given["spk"], strict=True)]
