"""The fifteen papers: which recipe runs which, in the order of `gamut list`. No torch, no recipe is imported here."""

import json
from dataclasses import dataclass
from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Paper:
    """``name`` is the recipe: gamut/recipes/<name>.py, once it is built."""

    name: str
    title: str
    arxiv: str
    line: str

    @property
    def built(self) -> bool:
        return (RECIPES / f"{self.name}.py").exists()

    @property
    def parts(self) -> list[str]:
        """Further recipes of the same paper: step_audio_2_codec belongs to step_audio_2, not to step_audio."""
        found = sorted(path.stem for path in RECIPES.glob(f"{self.name}_*.py"))
        return [name for name in found if _owner(name) == self.name != name]


def _owner(recipe: str) -> str:
    names = [paper.name for paper in PAPERS if recipe == paper.name or recipe.startswith(paper.name + "_")]
    return max(names, key=len, default="")


PAPERS = (
    Paper("step_audio", "Step-Audio", "2502.11946", "speech in, text and speech out: two codebooks, a flow voice"),
    Paper("step_audio_aqaa", "Step-Audio-AQAA", "2506.08967", "audio answers to audio questions, by masked DPO"),
    Paper("step_audio_2", "Step-Audio 2", "2507.16632", "one model that hears, writes, calls tools and speaks"),
    Paper("step_video_t2v", "Step-Video-T2V", "2502.10248", "text to video: video VAE, 3-D DiT, flow matching"),
    Paper("step_video_ti2v", "Step-Video-TI2V", "2503.11251", "image and text to video, with a dial for motion"),
    Paper("dgae", "DGAE", "2506.09644", "an image autoencoder that decodes by diffusion"),
    Paper("step1x_3d", "Step1X-3D", "2505.07747", "an image to a textured mesh"),
    Paper("open_vision_reasoner", "Open Vision Reasoner", "2507.05255", "reasoning learnt from text, used on images"),
    Paper("dialogue_reason", "DialogueReason", "2505.07049", "reasoning as a dialogue inside one model, by PPO"),
    Paper("bcpg_nsa", "BCPG-NSA", "2505.14403", "offline RL that keeps the right steps of wrong answers"),
    Paper("long_cot_prm", "Long-CoT PRM", "2505.14391", "a step judge for solutions that err and mend it"),
    Paper("moe_vs_dense", "MoE against dense", "2506.12119", "which wins at equal parameters, compute and data"),
    Paper("farseer", "Farseer", "2506.10972", "a scaling law in nine numbers"),
    Paper("streamrl", "StreamRL", "2504.15930", "RL with generation and training apart, streamed"),
    Paper("rlhfuse", "RLHFuse", "2409.13221", "RLHF with its stages and pipelines fused"),
)  # fmt: skip


def measured() -> dict[str, dict]:
    """Recipe -> {minutes, passed, claims, ...} of its last recorded run at tiny size; `make claims` writes it."""
    path = Path(__file__).parent / "measured.json"
    return json.loads(path.read_text()) if path.exists() else {}
