"""`gamut plan rlhfuse`: the fused training pipelines of an actor and a critic on one cluster."""

from collections.abc import Sequence


def main(args: Sequence[str] = ()) -> None:
    """Fuse the training pipelines of actor and critic: gamut plan rlhfuse --help."""
    from gamut.plan.pipeline_command import run_rlhfuse

    run_rlhfuse(list(args))
