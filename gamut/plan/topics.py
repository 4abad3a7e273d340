"""What `gamut plan` can answer: a question, what comes out, and a command to start with, topic by topic."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """``module`` has a function main, which is the command. ``example``: a whole command line."""

    module: str
    question: str
    answer: str
    example: str


TOPICS = {
    "scaling": Topic(
        "gamut.plan.scaling_command",
        "How large a model, on how many tokens, and which loss will it reach?",
        "From a table of your runs: the laws, a prediction with its interval, the best size, the next runs to make.",
        "gamut plan scaling runs.csv --target-flops 1e22",
    ),
    "moe": Topic(
        "gamut.plan.moe",
        "Dense, or a mixture of experts of the same parameters and compute?",
        "Both architectures side by side: widths, layers, experts, tokens, epochs, learning rate, batch.",
        "gamut plan moe --n 2.15e9 --flops 9.3e20",
    ),
    "pipeline": Topic(
        "gamut.plan.pipeline_command",
        "In which order should pipeline stages work on the micro-batches of one model, or of two at once?",
        "A schedule, its time and memory beside the classic ones and the lower bound, drawn op by op.",
        "gamut plan pipeline --instance 8",
    ),
    "rlhfuse": Topic(
        "gamut.plan.rlhfuse",
        "What do fused stages and fused pipelines save in RLHF with an actor and a critic?",
        "Seconds of an iteration before and after on your cluster, and the moment to migrate the long tail.",
        "gamut plan rlhfuse --gpus 256",
    ),
    "stream": Topic(
        "gamut.plan.stream",
        "How many GPUs should generate and how many train in RL, in turn, streamed or asynchronously?",
        "Five ways to run the same samples, simulated: samples a second, idle time, staleness, cost, the best split.",
        "gamut plan stream --model 7b --gpus 32xH800 --lengths 20k",
    ),
}


def overview() -> str:
    """The page of `gamut plan --help`."""
    lines = ["Plan a run before paying for it: arithmetic and simulation on this machine, nothing is trained.", "",
             "usage: gamut plan TOPIC ..."]  # fmt: skip
    for name, topic in TOPICS.items():
        lines += ["", f"{name:<10}{topic.question}", f"{'':10}{topic.answer}", f"{'':10}$ {topic.example}"]
    last = "Options of a topic: gamut plan TOPIC --help. How far off such plans are: docs/plan.md"
    return "\n".join([*lines, "", last])
