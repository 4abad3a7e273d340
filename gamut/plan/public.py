"""Published tables of runs under ``$GAMUT_DATA/scaling``, each with its own way of counting.

The eleven of REAL are what the default predictor was chosen on (benchmarks/scaling.py). Files whose upstream states no
licence are only ever read from that folder. Origins and licences: SOURCES.md beside the files.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gamut.plan.tables import ScalingTable, _columns


def folder() -> Path:
    """``$GAMUT_DATA/scaling``.

    Raises:
        ValueError: if the variable is not set or the folder is not there.
    """
    root = os.environ.get("GAMUT_DATA", "")
    path = Path(root) / "scaling"
    if not root or not path.is_dir():
        where = f"{path} is no folder" if root else "it is not set"
        raise ValueError(f"the published run tables are read from $GAMUT_DATA/scaling, but {where}; set GAMUT_DATA")
    return path


def chinchilla() -> ScalingTable:
    """Figure 4 of Chinchilla digitised by Epoch AI (no licence stated); D = C / 6N, the 5 highest losses dropped."""
    table = ScalingTable.read(
        folder() / "no_licence/chinchilla_fig4_epoch.csv", N="Model Size", flops="Training FLOP", loss="loss",
        convention="total", name="Chinchilla digitised",
    )  # fmt: skip
    return table.take(np.argsort(-table.loss, kind="stable")[5:])


def gemstones(*, shapes: bool = False) -> ScalingTable:
    """22 shapes, a row per checkpoint at a constant learning rate (mcleish7/gemstone-scaling-laws, MIT).

    Args:
        shapes: declare width / depth, so that fits allow for it.
    """
    columns: dict[str, Any] = {"width": "width", "depth": "depth"} if shapes else {}
    return ScalingTable.read(
        folder() / "gemstones_fineweb_edu.csv", N="params_active_precise", loss="final_loss",
        name=f"Gemstones FineWeb-Edu{' with shapes' if shapes else ''}", **columns,
    )  # fmt: skip


def olmo() -> ScalingTable:
    """The OLMo 2 ladder without its targets (allenai/OLMo-ladder, Apache-2.0); loss on C4."""
    return ScalingTable.read(
        folder() / "olmo_ladder_final.csv", where={"kind": "ladder"}, loss="ce_c4_en", lr="lr_peak",
        batch="batch_tokens",
        convention="no input embedding", name="OLMo ladder",
    )  # fmt: skip


def step_law() -> ScalingTable:
    """Best run of each (N, D) cell of Step Law's dense learning-rate and batch grids (no licence stated)."""
    columns = _columns(folder() / "no_licence/steplaw_dense_lr_bs_loss.csv")
    N, D, loss, lr, batch = (np.array(columns[c], dtype=float) for c in ("N", "D", "smooth loss", "lr", "bs"))
    cells = {}
    for row in np.argsort(-loss):
        cells[N[row], D[row]] = row
    best = np.array(sorted(cells.values()))
    return ScalingTable(
        N[best], D[best], loss[best], lr[best], 2048 * batch[best], convention="non-embedding", name="Step Law dense"
    )


def datablations(*, repeated: bool = False, start: float = 0.4) -> ScalingTable:
    """Data-constrained runs on C4 (huggingface/datablations, Apache-2.0): single epoch, or all with ``repeated``.

    Args:
        start: least D / N; runs below it never left the first stretch of training.
    """
    columns = _columns(folder() / "datablations_c4.csv")
    N, D, U, epochs, loss = (
        np.array(columns[c], float) for c in ("params", "tokens", "unique_tokens", "epochs", "val_loss")
    )
    keep = (np.array(columns["seed"]) == "") & (D / N >= start) & ((epochs <= 1) | repeated)
    table = ScalingTable(N[keep], D[keep], loss[keep], unique=np.minimum(U, D)[keep], convention="total")
    return table if repeated else _named(table, "datablations 1 epoch")


def gadre(train_set: str, *, embedding: bool = True) -> ScalingTable:
    """Over-training testbed, loss on C4 (mlfoundations/scaling, MIT).

    Args:
        train_set: c4_original, rpj or rw_original. embedding: count all of N; else leave embeddings out, and the 11M
            models too, which were trained with a learning rate made for larger ones.
    """
    columns = "params" if embedding else "params_no_embed"
    short = {"c4_original": "C4", "rpj": "RedPajama", "rw_original": "RefinedWeb"}[train_set]
    table = ScalingTable.read(
        folder() / "gadre_overtraining.csv", where={"train_set": train_set}, N=columns, loss="loss_c4_val",
        convention="total" if embedding else "non-embedding", name=f"Gadre {short}{'' if embedding else ' (non-emb.)'}",
    )  # fmt: skip
    return table if embedding else table.take(table.N > 1.1 * table.N.min())


def nanochat(counted: str) -> ScalingTable:
    """Optima of four iso-FLOP parabolas (karpathy/nanochat, MIT); ``counted`` says which parameters were."""
    return ScalingTable.read(
        folder() / "nanochat_isoflop_optima.csv", where={"params_counted": counted}, N="params", D="tokens",
        loss="val_bpb",
        convention="matmul" if counted.startswith("matmul") else "total", unit="bits/byte", name=f"nanochat {counted}",
    )  # fmt: skip


def farseer(path: str | Path) -> ScalingTable:
    """The authors' released runs, which are not part of `$GAMUT_DATA`: a file with their column names.

    Get ``ipynb/data/1222_full.csv`` from the repository Farseer-Scaling-Law/Farseer. Its column D/N is not D/N.
    """
    return ScalingTable.read(path, loss="IntelliValSet_Raw|en", convention="non-embedding", unit="bits/character")


def _named(table: ScalingTable, name: str) -> ScalingTable:
    from dataclasses import replace

    return replace(table, name=name)


GADRE = ("c4_original", "rpj", "rw_original")
REAL: dict[str, Callable[[], ScalingTable]] = {
    "chinchilla": chinchilla,
    "gemstones": gemstones,
    "olmo": olmo,
    "step_law": step_law,
    "datablations": datablations,
    **{f"gadre_{name}": lambda name=name: gadre(name) for name in GADRE},
    **{f"gadre_{name}_body": lambda name=name: gadre(name, embedding=False) for name in GADRE},
}
