"""ONNX files laid out as the released ones, made here from random weights: what comes back computes the same."""

import pytest
import torch
from torch import Tensor

from gamut.codecs.s3_tokenizer import S3Config, S3Tokenizer
from gamut.io.convert import convert
from gamut.io.graphs import place, read_graph
from gamut.io.keys import campplus
from gamut.io.keys import s3_tokenizer as s3
from gamut.models.speaker import SpeakerNet, SpeakerNetConfig

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


class Drawing:
    """A graph under construction: nodes in a row, tensors anonymous unless they are given a name."""

    def __init__(self):
        self.nodes, self.tensors = [], []

    def hold(self, tensor: Tensor, name: str = "") -> str:
        name = name or f"onnx::Thing_{1000 + len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(tensor.detach().contiguous().numpy(), name))
        return name

    def node(self, op: str, name: str, *held: str, **attributes) -> None:
        out = f"{name}_output_0"
        given = [self.nodes[-1].output[0] if self.nodes else "input", *held]
        self.nodes.append(helper.make_node(op, given, [out], name=name, **attributes))

    def save(self, path):
        value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("input", "out")]
        self.nodes.append(helper.make_node("Identity", [self.nodes[-1].output[0]], ["out"], name="/Identity"))
        graph = helper.make_graph(self.nodes, "exported", value[:1], value[1:], self.tensors)
        onnx.save(helper.make_model(graph), str(path))
        return path


def draw_s3(model: S3Tokenizer, path):
    """As the public converter describes the releases: linear weights turned and anonymous, version 1's layer norms in
    pieces, version 2's whole, the quantiser's names its own."""
    w, d, old = s3.NAMES.to_official(model.state_dict(), "the table"), Drawing(), model.config.version == 1

    def linear(path, key, bias=True):
        d.node("MatMul", f"{path}/MatMul", d.hold(w[f"{key}.weight"].T))
        if bias:
            d.node("Add", f"{path}/Add", d.hold(w[f"{key}.bias"], f"encoders.{key.removeprefix('encoder.')}.bias"))

    def norm(path, key, eps):
        if old:
            d.node("Add", f"{path}/Add", d.hold(torch.tensor(eps)))
            d.node("Mul", f"{path}/Mul", d.hold(w[f"{key}.weight"]))
            d.node("Add", f"{path}/Add_1", d.hold(w[f"{key}.bias"]))
        else:
            held = [d.hold(w[f"{key}.{leaf}"]) for leaf in ("weight", "bias")]
            d.node("LayerNormalization", f"{path}/LayerNormalization", *held, epsilon=eps)

    for i in (1, 2):
        d.node("Conv", f"/conv{i}/Conv", *[d.hold(w[f"encoder.conv{i}.{leaf}"]) for leaf in ("weight", "bias")])
    if old:
        d.node("Slice", "/Slice_1", d.hold(w["encoder.positional_embedding"], "encoders.positional_embedding"))
    else:
        d.node("Mul", "/Mul_table", d.hold(torch.randn(2048, 64)))  # a table of angles, not a weight
    for i in range(model.config.layers):
        at, key = f"/blocks.{i}", f"encoder.blocks.{i}"
        norm(f"{at}/attn_ln", f"{key}.attn_ln", model.config.norm_eps[0])
        for part in ("query", "key", "value"):
            linear(f"{at}/attn/{part}", f"{key}.attn.{part}", bias=part != "key")
        d.node("Mul", f"{at}/attn/Mul", d.hold(torch.tensor(0.35)))
        if not old:
            d.node("Conv", f"{at}/attn/fsmn_block/Conv", d.hold(w[f"{key}.attn.fsmn_block.weight"]))
        linear(f"{at}/attn/out", f"{key}.attn.out")
        norm(f"{at}/mlp_ln", f"{key}.mlp_ln", model.config.norm_eps[1])
        linear(f"{at}/mlp/mlp.0", f"{key}.mlp.0")
        linear(f"{at}/mlp/mlp.2", f"{key}.mlp.2")
    if old:
        words = d.hold(w["quantizer._codebook.embed"].T)
        d.node("Pow", "/quantizer/rq/model/layers.0/_codebook/Pow_1", words)
    else:
        d.node("MatMul", "/quantizer/project_in/MatMul", d.hold(w["quantizer._codebook.project_down.weight"].T))
        bias = d.hold(w["quantizer._codebook.project_down.bias"], "quantizer.project_in.bias")
        d.node("Add", "/quantizer/project_in/Add", bias)
    return d.save(path)


def random_s3(version: int) -> S3Tokenizer:
    torch.manual_seed(version)
    own = {"norm_eps": (1e-5, 1e-5), "codebook": 40, "positions": 100} if version == 1 else {}
    model = S3Tokenizer(S3Config(version=version, mels=20, width=128, layers=2, heads=2, ffn=256, **own)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("version", [1, 2])
def test_a_tokenizer_comes_back_with_equal_codes(tmp_path, version):
    model = random_s3(version)
    file = draw_s3(model, tmp_path / "speech_tokenizer.onnx")
    again = S3Tokenizer.from_pretrained(convert(file, tmp_path / "ours"))
    mels, lens = torch.randn(2, 20, 90), torch.tensor([90, 41])
    a, b = model.tokens(mels, lens)[0], again.tokens(mels, lens)[0]
    assert again.config == model.config
    assert torch.equal(a[0], b[0]) and torch.equal(a[1, :11], b[1, :11])
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def fold(conv: Tensor, norm: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A convolution and the batch norm behind it as one, as exporters do."""
    scale = norm.get("weight", torch.tensor(1.0)) / (norm["running_var"] + campplus.EPS).sqrt()
    weight = conv * scale.reshape(-1, *[1] * (conv.ndim - 1))
    return weight, norm.get("bias", torch.tensor(0.0)) - norm["running_mean"] * scale


def draw_speaker(model: SpeakerNet, path):
    w, d = campplus.NAMES.to_official(model.state_dict(), "the table"), Drawing()
    last = f"xvector.transit{len(model.config.layers)}.linear"
    for name in [key.removesuffix(".weight") for key in w if key.endswith("weight") and w[key].ndim > 1]:
        scope = "/" + name.replace(".", "/")
        for stage in ("layer1", "layer2", "shortcut"):
            for number in "01":
                scope = scope.replace(f"/{stage}/{number}", f"/{stage}/{stage}.{number}")
        behind = campplus._behind(name)
        if behind and (not name.startswith("xvector.transit") or name == last):
            norm = {key.rpartition(".")[2]: tensor for key, tensor in w.items() if key.rpartition(".")[0] == behind}
            d.node("Conv", f"{scope}/Conv", *map(d.hold, fold(w[f"{name}.weight"], norm)))
            w = {key: tensor for key, tensor in w.items() if key.rpartition(".")[0] != behind}
        else:
            leaves = [f"{name}.{leaf}" for leaf in ("weight", "bias") if f"{name}.{leaf}" in w]
            held = [d.hold(w[leaf], leaf) for leaf in leaves]
            third = "block1" not in name and "linear_local" in name
            d.node("Conv", f"{scope}/Conv", *held, dilations=[2 if third else 1])
    for name in [key.removesuffix(".running_mean") for key in w if key.endswith("running_mean")]:
        leaves = [f"{name}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
        held = [d.hold(w[leaf], leaf) for leaf in leaves]
        d.node("BatchNormalization", "/" + name.replace(".", "/") + "/BatchNormalization", *held)
    d.nodes[-1].name = ""  # some exporters leave a node without a name: what it gives tells then
    return d.save(path)


def random_speaker() -> SpeakerNet:
    torch.manual_seed(3)
    model = SpeakerNet(
        SpeakerNetConfig(mels=16, embedding=12, head=4, width=8, growth=4, layers=(2, 3), dilations=(1, 2)))
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.3)
    return model.eval()


def test_a_speaker_network_comes_back_with_its_norms_folded(tmp_path):
    model = random_speaker()
    again = SpeakerNet.from_pretrained(convert(draw_speaker(model, tmp_path / "campplus.onnx"), tmp_path / "ours"))
    assert again.config == model.config
    frames = torch.randn(2, 250, 16)
    torch.testing.assert_close(again(frames), model(frames), atol=1e-4, rtol=1e-4)


def test_missing_weights_are_named(tmp_path):
    model = random_s3(2)
    file = draw_s3(model, tmp_path / "a.onnx")
    proto = onnx.load(str(file))
    for node in list(proto.graph.node):
        if node.name.startswith("/blocks.1/attn/value"):
            proto.graph.node.remove(node)
    onnx.save(proto, str(file))
    with pytest.raises(ValueError, match=r"2 of its weights were not found: encoder\.blocks\.1\.attn\.value\.weight"):
        convert(file, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_other_files_are_refused(tmp_path):
    d = Drawing()
    d.node("MatMul", "/decoder/head/MatMul", d.hold(torch.randn(4, 4)))
    with pytest.raises(ValueError, match="is neither an S3 tokenizer nor CAM"):
        convert(d.save(tmp_path / "other.onnx"), tmp_path / "ours")
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07\x12\x99 not a graph")
    with pytest.raises(ValueError, match=r"truncated or no ONNX file|holds no graph"):
        convert(tmp_path / "broken.onnx", tmp_path / "ours")
    with pytest.raises(ValueError, match=r"'.*none\.onnx' not found"):
        convert(tmp_path / "none.onnx", tmp_path / "ours")


def test_constants_and_turned_tensors_count_as_held(tmp_path):
    d, weight = Drawing(), torch.randn(3, 5)
    held = d.hold(weight, "blocks.0.attn.query.weight")
    turn = helper.make_node("Transpose", [held], ["turned"], name="/blocks.0/attn/query/Transpose", perm=[1, 0])
    d.nodes.append(turn)
    d.nodes.append(helper.make_node("MatMul", ["input", "turned"], ["m"], name="/blocks.0/attn/query/MatMul"))
    bias = numpy_helper.from_array(torch.ones(3).numpy())
    d.nodes.append(helper.make_node("Constant", [], ["b"], name="/Constant", value=bias))
    d.nodes.append(helper.make_node("Add", ["m", "b"], ["y"], name="/blocks.0/attn/query/Add"))
    official, _ = s3.from_graph(read_graph(d.save(tmp_path / "a.onnx")))
    assert torch.equal(official["encoder.blocks.0.attn.query.weight"], weight)
    assert torch.equal(official["encoder.blocks.0.attn.query.bias"], torch.ones(3))


def test_places_of_nodes():
    assert place("/head/layer1/layer1.0/shortcut/shortcut.0/Conv") == ("head.layer1.0.shortcut.0", "Conv")
    assert place("/quantizer/rq/model/layers.0/_codebook/Pow_1") == ("quantizer.rq.model.layers.0._codebook", "Pow_1")
