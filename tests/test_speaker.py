"""CAM++: names, sizes, folders; vectors from elsewhere."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gamut.codecs.fbank import fbank
from gamut.io.folders import save_folder
from gamut.io.keys import campplus as keys
from gamut.models.speaker import Joined, SpeakerNet, SpeakerNetConfig, read_vector

SMALL = SpeakerNetConfig(mels=16, embedding=12, head=4, width=8, growth=4, layers=(2, 3), dilations=(1, 2))


@pytest.fixture(scope="module")
def net() -> SpeakerNet:
    torch.manual_seed(0)
    return SpeakerNet(SMALL).eval()


def test_official_names_there_and_back(net, tmp_path):
    official = keys.NAMES.to_official(net.state_dict(), "the table")
    assert {
        "head.conv1.weight", "head.bn1.running_mean", "head.layer1.0.shortcut.0.weight", "head.layer2.1.bn2.bias",
        "head.bn2.num_batches_tracked", "xvector.tdnn.linear.weight", "xvector.tdnn.nonlinear.batchnorm.running_var",
        "xvector.block2.tdnnd3.nonlinear1.batchnorm.weight", "xvector.block1.tdnnd1.cam_layer.linear1.bias",
        "xvector.transit2.linear.weight", "xvector.out_nonlinear.batchnorm.bias", "xvector.dense.linear.weight",
        "xvector.dense.nonlinear.batchnorm.running_mean",
    } <= set(official)  # fmt: skip
    assert "xvector.dense.nonlinear.batchnorm.weight" not in official and not keys.missing(official)
    again = SpeakerNet.from_pretrained(save_folder(tmp_path / "official", official, {}))
    assert again.config == SMALL
    frames = torch.randn(1, 30, 16)
    assert torch.equal(again(frames), net(frames))
    with pytest.raises(ValueError, match="1 unexpected: extra"):
        SpeakerNet.from_pretrained(save_folder(tmp_path / "more", official | {"extra": torch.zeros(1)}, {}))
    with pytest.raises(ValueError, match=r"no CAM\+\+ among 1 tensors"):
        keys.config_from_official({}, {"a": torch.zeros(1)})


def test_the_released_size():
    """The paper's 7.18 million parameters with 512 numbers out. With 192, folded as an exporter folds them, 616 tensors
    of 27.6 MB, where the released campplus.onnx has 617 tensors (one a constant) and 28.3 MB with its 3206 nodes."""
    with torch.device("meta"):
        paper = SpeakerNet(SpeakerNetConfig(embedding=512))
        assert round(sum(p.numel() for p in paper.parameters()) / 1e6, 2) == 7.18
        official = keys.NAMES.to_official(SpeakerNet().state_dict(), "the table")
    stored = {name: tensor for name, tensor in official.items() if not name.endswith("tracked")}
    last = "xvector.transit3.linear.weight"
    for name in [name for name in official if name.endswith(".weight") and keys._behind(name[:-7])]:
        if not name.startswith("xvector.transit") or name == last:
            norm = keys._behind(name[:-7])
            stored = {n: t for n, t in stored.items() if n.rpartition(".")[0] != norm or n.endswith("running_mean")}
    assert len(official) == 937 and len(stored) == 616
    assert sum(tensor.numel() for tensor in stored.values()) * 4 == 27_629_952


def test_the_context_of_a_dense_layer_by_hand():
    """Mean over all time plus mean over each hundred steps, the last hundred as long as it is."""
    torch.manual_seed(1)
    layer, x = Joined(4, 3, 6, dilation=2).eval(), torch.randn(1, 4, 130)
    y = F.relu(layer.between(layer.squeeze(F.relu(layer.before(x)))))
    near = torch.cat([y[..., :100].mean(-1, keepdim=True).expand(-1, -1, 100),
                      y[..., 100:].mean(-1, keepdim=True).expand(-1, -1, 30)], -1)  # fmt: skip
    gate = layer.up(F.relu(layer.down(y.mean(-1, keepdim=True) + near))).sigmoid()
    torch.testing.assert_close(layer(x), layer.local(y) * gate)
    assert layer(x).shape == (1, 3, 130)


def test_sound_to_vector(net, tmp_path):
    model = SpeakerNet(SpeakerNetConfig(layers=(1, 1, 1), head=8)).eval()
    frames = fbank(torch.randn(2, 16000) * 0.1, centred=True)
    assert model(frames).shape == (2, 192) and model(frames).isfinite().all()
    with pytest.raises(ValueError, match=r"at least 3 frames \(45 ms\) of 80 fbank bins, got 2 of 80"):
        model(frames[:, :2])
    net.save_pretrained(tmp_path / "net")
    assert SpeakerNet.from_pretrained(tmp_path / "net").config == SMALL
    with pytest.raises(ValueError, match="multiple of 8"):
        SpeakerNetConfig(mels=20)


def test_vectors_from_elsewhere(tmp_path):
    vector = np.linspace(-1, 1, 192).astype(np.float32)
    np.save(tmp_path / "a.npy", vector[None])
    (tmp_path / "b.txt").write_text("\n".join(map(str, vector[:100])) + ", " + ", ".join(map(str, vector[100:])))
    for name in ("a.npy", "b.txt"):
        torch.testing.assert_close(read_vector(tmp_path / name), torch.from_numpy(vector))
    (tmp_path / "c.txt").write_text("1 2 nan")
    (tmp_path / "d.txt").write_text("one two")
    np.save(tmp_path / "e.npy", np.zeros((2, 96)))
    for name, message in [("c.txt", "one row of finite"), ("d.txt", "holds no speaker vector"),
                          ("e.npy", r"array of shape \(2, 96\)"), ("f.txt", "holds no speaker vector")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_vector(tmp_path / name)
