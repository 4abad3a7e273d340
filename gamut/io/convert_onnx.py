"""ONNX files of the releases -> folders of ours: the S3 tokenizers, and the CAM++ speaker network.

    gamut convert speech_tokenizer_v2_25hz.onnx DST     # S3Tokenizer.from_pretrained(DST)
    gamut convert campplus.onnx DST                     # SpeakerNet.from_pretrained(DST)
"""

from pathlib import Path

import gamut
from gamut.io.folders import save_folder
from gamut.io.graphs import read_graph
from gamut.io.keys import campplus, s3_tokenizer

FAMILIES = {"S3Tokenizer": s3_tokenizer, "SpeakerNet": campplus}


def convert_onnx(src: str | Path, dst: str | Path) -> Path:
    """Write ``dst`` from one .onnx file; which network it is follows from its nodes.

    Raises:
        ValueError: a graph of neither, one with weights missing (all are named), and what ``read_graph`` says.
    """
    src = Path(src)
    graph = read_graph(src)
    found = next((item for item in FAMILIES.items() if item[1].looks(graph)), None)
    if found is None:
        paths = sorted({node.path.split(".")[0] for node in graph.nodes if node.path})
        raise ValueError(f"'{src}' is neither an S3 tokenizer nor CAM++: its nodes stand in {', '.join(paths[:8])}")
    kind, keys = found
    official, stored = keys.from_graph(graph)
    if missing := keys.missing(official):
        more = f" ... and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise ValueError(f"'{src}' looks like a {kind}, but {len(missing)} of its weights were not found: "
                         f"{', '.join(missing[:8])}{more}; was it exported by other means than the release?")
    card = (
        f"# {src.name}, converted\n\n`{kind}.from_pretrained(folder)` loads it. "
        f"Weights, licence and training are those of the original.\n"
    )
    wrapped = {"gamut": gamut.__version__, "class": kind, "config": keys.config_from_official(stored, official)}
    return save_folder(dst, keys.NAMES.to_ours(official), wrapped, card=card)
