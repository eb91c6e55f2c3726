"""Weights of other implementations, once imported, give the lengths and the reconstructions that they gave there."""

import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from capsnet.errors import InputError
from capsnet.models import CapsNet
from capsnet.weights import import_keras, import_pytorch, import_weights

PARENTS, DIM, TYPES, CHILD_DIM, GRID = 3, 5, 2, 4, 4  # small networks: kernels of 3, images of 12x12


def pytorch_weights(channels=1, decoder=True):
    """The state dict of a small network as CapsNet-pytorch names its parts, with a prior that counts."""
    shapes = {
        "conv1.weight": (6, channels, 3, 3),
        "conv1.bias": (6,),
        "primaryCaps.conv.weight": (TYPES * CHILD_DIM, 6, 3, 3),
        "primaryCaps.conv.bias": (TYPES * CHILD_DIM,),
        "digitCaps.weights": (TYPES * GRID**2, CHILD_DIM, PARENTS * DIM),
        "digitCaps.routing_module.b": (TYPES * GRID**2, PARENTS),
    }
    if decoder:
        shapes = {f"capsnet.{name}": shape for name, shape in shapes.items()}
        for n, (out, into) in enumerate(((512, PARENTS * DIM), (1024, 512), (channels * 144, 1024)), 1):
            shapes |= {f"reconstruction_net.fc{n}.weight": (out, into), f"reconstruction_net.fc{n}.bias": (out,)}
    return {name: torch.randn(shape) * (1 if name.endswith(".b") else 0.3) for name, shape in shapes.items()}


def keras_weights(channels=1, decoder=True):
    """What get_weights() would list for a small network of CapsNet-Keras."""
    shapes = [(3, 3, channels, 6), (6,), (3, 3, 6, TYPES * CHILD_DIM), (TYPES * CHILD_DIM,)]
    shapes += [(PARENTS, TYPES * GRID**2, DIM, CHILD_DIM)]
    if decoder:
        shapes += [(PARENTS * DIM, 512), (512,), (512, 1024), (1024,), (1024, 144 * channels), (144 * channels,)]
    return [np.random.default_rng(k).normal(0, 0.3, shape).astype(np.float32) for k, shape in enumerate(shapes)]


def run_pytorch(weights, images, classes, updates):
    """The network of CapsNet-pytorch, capsule by capsule, in float64: lengths [b, j], reconstructions [b, pixels]."""
    w = {name.removeprefix("capsnet."): weight.double() for name, weight in weights.items()}
    maps = F.conv2d(
        F.relu(F.conv2d(images, w["conv1.weight"], w["conv1.bias"])), w["primaryCaps.conv.weight"], stride=2
    )
    maps = maps + w["primaryCaps.conv.bias"][:, None, None]
    places = [(kind, y, x) for kind in range(TYPES) for y in range(GRID) for x in range(GRID)]
    children = [maps[:, kind * CHILD_DIM : (kind + 1) * CHILD_DIM, y, x] for kind, y, x in places]
    children = [child * child.norm(dim=1, keepdim=True) / (1 + (child**2).sum(1, keepdim=True)) for child in children]
    votes = [child @ w["digitCaps.weights"][i] for i, child in enumerate(children)]
    votes = torch.stack(votes, 1).reshape(len(images), len(places), PARENTS, DIM)
    logits = w["digitCaps.routing_module.b"].expand(len(images), -1, -1)
    for update in range(updates + 1):
        total = (logits.exp() / logits.exp().sum(2, keepdim=True)).unsqueeze(3).mul(votes).sum(1)
        parents = total * total.norm(dim=2, keepdim=True) / (1 + total.square().sum(2, keepdim=True))
        logits = logits + (votes * parents.unsqueeze(1)).sum(3) if update < updates else None
    x = torch.stack([F.one_hot(k, PARENTS)[:, None] * v for k, v in zip(classes, parents, strict=True)]).flatten(1)
    for n in (1, 2, 3) if "reconstruction_net.fc1.weight" in w else ():
        x = x @ w[f"reconstruction_net.fc{n}.weight"].T + w[f"reconstruction_net.fc{n}.bias"]
        x = x.relu() if n < 3 else x.sigmoid()
    return parents.norm(dim=2), x


def run_keras(arrays, images, classes, routings, epsilon):
    """The network of CapsNet-Keras in numpy, float64, channels last: lengths [b, j], reconstructions [b, y, x, c]."""
    arrays = [array.astype(np.float64) for array in arrays]

    def convolved(x, kernel, bias, stride):
        rows = range(0, x.shape[1] - len(kernel) + 1, stride)
        return np.stack([[np.tensordot(x[:, r : r + 3, s : s + 3], kernel, 3) for s in rows] for r in rows], 0) + bias

    def squashed(s):
        squares = np.square(s).sum(-1, keepdims=True)
        return s * squares / (1 + squares) / np.sqrt(squares + epsilon)

    x = np.maximum(convolved(images, *arrays[:2], 1), 0).transpose(2, 0, 1, 3)
    x = convolved(x, *arrays[2:4], 2).transpose(2, 0, 1, 3)
    children = squashed(x.reshape(len(images), -1, CHILD_DIM))
    votes = np.einsum("jied,bid->bjie", arrays[4], children)
    logits = np.zeros(votes.shape[:3])
    for _ in range(routings):
        couplings = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        parents = squashed((couplings[..., None] * votes).sum(2))
        logits = logits + (votes * parents[:, :, None]).sum(3)
    x = (np.eye(PARENTS)[classes][..., None] * parents).reshape(len(images), -1)
    for n, (kernel, bias) in enumerate(zip(arrays[5::2], arrays[6::2], strict=True), 1):
        x = x @ kernel + bias
        x = np.maximum(x, 0) if n < 3 else (1 / (1 + np.exp(-x))).reshape(images.shape)
    return np.sqrt(np.square(parents).sum(2) + epsilon), x


def see(network, images, classes):
    """Lengths and reconstructions of an imported network, without gradients."""
    with torch.no_grad():
        return network(images, classes)


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize(("channels", "decoder"), [(1, True), (3, True), (1, False)])
def test_a_network_of_capsnet_pytorch_has_the_same_output(channels, decoder, iterations):
    weights, images, classes = pytorch_weights(channels, decoder), torch.rand(4, channels, 12, 12), torch.arange(4) % 3
    lengths, reconstruction = run_pytorch(weights, images.double(), classes, iterations)
    seen = see(import_pytorch(weights, iterations), images, classes)
    torch.testing.assert_close(seen.lengths, lengths.float())
    if decoder:
        torch.testing.assert_close(seen.reconstruction.flatten(1), reconstruction.float())
    else:
        assert seen.reconstruction is None


@pytest.mark.parametrize("routings", [1, 3])
@pytest.mark.parametrize(("channels", "decoder"), [(1, True), (3, True), (1, False)])
@pytest.mark.parametrize(("epsilon", "tolerance"), [(0, 1e-5), (1e-7, 1e-4)])
def test_a_network_of_capsnet_keras_has_the_same_output(channels, decoder, routings, epsilon, tolerance):
    arrays, images, classes = keras_weights(channels, decoder), torch.rand(4, channels, 12, 12), torch.arange(4) % 3
    there = images.permute(0, 2, 3, 1).double().numpy()
    lengths, reconstruction = run_keras(arrays, there, classes.numpy(), routings, epsilon)
    seen = see(import_keras(arrays, routings), images, classes)
    np.testing.assert_allclose(seen.lengths, lengths, rtol=0, atol=tolerance)
    if decoder:
        np.testing.assert_allclose(seen.reconstruction.permute(0, 2, 3, 1), reconstruction, rtol=0, atol=tolerance)
    else:
        assert seen.reconstruction is None


def test_the_paper_s_sizes_are_worked_out_from_shapes_alone():
    weights = {
        "conv1.weight": torch.zeros(256, 1, 9, 9),
        "conv1.bias": torch.zeros(256),
        "primaryCaps.conv.weight": torch.zeros(256, 256, 9, 9),
        "primaryCaps.conv.bias": torch.zeros(256),
        "digitCaps.weights": torch.zeros(1152, 8, 160),
        "digitCaps.routing_module.b": torch.zeros(1152, 10),
    }
    network = import_pytorch(weights)
    assert (network.image_shape, network.classes, network.digit_caps.iterations) == ((1, 28, 28), 10, 4)
    assert sum(weight.numel() for weight in network.parameters()) == 6_804_224 + 1152 * 10


def test_the_decoder_s_size_tells_the_image_s_side_where_two_sides_have_the_same_capsules():
    weights = pytorch_weights()
    for part in ("weight", "bias"):
        weights[f"reconstruction_net.fc3.{part}"] = weights[f"reconstruction_net.fc3.{part}"][:121]
    assert import_pytorch(weights).image_shape == (1, 11, 11)
    assert import_pytorch(pytorch_weights(decoder=False)).image_shape == (1, 12, 12)


def test_the_network_has_its_own_weights_in_float32():
    weights = {name: weight.half() for name, weight in pytorch_weights().items()}
    before = {name: weight.clone() for name, weight in weights.items()}
    network = import_pytorch(weights)
    for parameter in network.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.requires_grad
        parameter.data += 1
    assert all(torch.equal(weights[name], before[name]) for name in before)


@pytest.mark.parametrize("name", pytorch_weights())
def test_a_weight_of_capsnet_pytorch_that_is_missing_or_does_not_fit_is_refused(name):
    weights = pytorch_weights()
    with pytest.raises(InputError, match=f"^{name} is missing: give all 12 weights"):
        import_pytorch({other: weight for other, weight in weights.items() if other != name})
    with pytest.raises(InputError, match=r"^\S+ is \[.*\], but the other weights need \[.*\]$"):
        import_pytorch(weights | {name: torch.cat([weights[name]] * 2, dim=-1)})
    with pytest.raises(InputError, match=rf"^{name} is \[1.*\], but should be \[.*\]$"):
        import_pytorch(weights | {name: weights[name][None]})


@pytest.mark.parametrize("place", range(11))
def test_an_array_of_capsnet_keras_that_does_not_fit_is_refused(place):
    arrays = keras_weights()
    arrays[place] = np.concatenate([arrays[place]] * 2)
    with pytest.raises(InputError, match=r"^.+ is \[.*\], but the other weights need \[.*\]$"):
        import_keras(arrays)
    with pytest.raises(InputError, match="11 arrays, or 5 without a decoder, not 10: give all"):
        import_keras(arrays[:place] + arrays[place + 1 :])


def test_what_no_such_network_has_is_refused():
    with pytest.raises(InputError, match=r"^conv1.weight is \[5, 5\], but should be \[target source down across\]$"):
        import_pytorch(pytorch_weights(decoder=False) | {"conv1.weight": torch.ones(5, 5)})
    with pytest.raises(InputError, match=r"^conv1.weight is \[6, 0, 3, 3\], but should be "):
        import_pytorch(pytorch_weights(decoder=False) | {"conv1.weight": torch.ones(6, 0, 3, 3)})
    with pytest.raises(InputError, match=r"^fc9\.weight is not a weight of this network: leave it out$"):
        import_pytorch(pytorch_weights() | {"fc9.weight": torch.ones(2)})
    with pytest.raises(InputError, match="is at least 0, not -1"):
        import_pytorch(pytorch_weights(), -1)
    with pytest.raises(InputError, match="greater than or equal to 1, not 0"):
        import_keras(keras_weights(), 0)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("modern", [True, False])
def test_a_file_of_a_state_dict_becomes_a_folder_to_load_from(tmp_path, wrapper, modern):
    weights, images, classes = pytorch_weights(), torch.rand(4, 1, 12, 12), torch.arange(4) % 3
    content = weights if wrapper is None else {"epoch": 3, wrapper: weights}
    torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=modern)
    folder = import_weights(tmp_path / "net.pth", tmp_path / "some" / "net", iterations=2)
    assert {"config.json", "model.safetensors"} <= {path.name for path in folder.iterdir()}
    seen, expected = (see(it, images, classes) for it in (CapsNet.from_pretrained(folder), import_pytorch(weights, 2)))
    assert torch.equal(seen.reconstruction, expected.reconstruction)


def test_a_file_of_keras_arrays_becomes_a_folder_to_load_from(tmp_path):
    images, classes = torch.rand(4, 3, 12, 12), torch.arange(4) % 3
    np.savez(tmp_path / "net.npz", *keras_weights(3))
    (tmp_path / "net").mkdir()
    read = CapsNet.from_pretrained(import_weights(tmp_path / "net.npz", tmp_path / "net"))
    seen, expected = (see(network, images, classes) for network in (read, import_keras(keras_weights(3))))
    assert torch.equal(seen.reconstruction, expected.reconstruction)


def write_bad_files(folder):
    """Files that hold no weights, by name."""
    torch.save(pytorch_weights(), folder / "good.pt")
    (folder / "damaged.pt").write_bytes((folder / "good.pt").read_bytes()[:-5000])
    (folder / "empty.pth").write_bytes(b"")
    torch.save(torch.nn.Linear(2, 2), folder / "module.pt")
    torch.save([torch.ones(2)], folder / "list.pt")
    torch.save(torch.ones(2), folder / "tensor.pt")
    torch.save({"model": {3: [{"conv1.weight": (torch.ones(2),)}]}}, folder / "nested.pt")
    torch.save(None, folder / "none.pt")
    (folder / "folder.pt").mkdir()
    (folder / "folder.npz").mkdir()
    np.savez(folder / "named.npz", conv1=np.ones(2))
    np.savez(folder / "objects.npz", np.array([{}], dtype=object))
    np.savez(folder / "records.npz", np.zeros(2, [("w", "f4")]))
    np.savez(folder / "text.npz", np.array(["conv1"]))
    (folder / "damaged.npz").write_bytes(b"PK")


BAD_FILES = ("damaged.pt", "empty.pth", "module.pt", "list.pt", "tensor.pt", "nested.pt", "none.pt", "gone.pt")
BAD_FILES += ("named.npz", "objects.npz", "records.npz", "text.npz", "damaged.npz", "gone.npz")


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_without_weights_is_refused_in_one_line_and_nothing_is_written(tmp_path, name):
    write_bad_files(tmp_path)
    with pytest.raises(InputError, match=rf"^\S+{name} (cannot be read as|holds no) .*: write it with ") as refusal:
        import_weights(tmp_path / name, tmp_path / "net")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("name", ["folder.pt", "folder.npz"])
def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path, name):
    write_bad_files(tmp_path)
    with pytest.raises(InputError, match=rf"{name} cannot be read: it is not a regular file"):
        import_weights(tmp_path / name, tmp_path / "net")


def odd_weights():
    """Weights that a state dict can hold in the place of a tensor of numbers, by what they are."""
    kernel = torch.ones(6, 1, 3, 3)
    return {
        "a number": 3,
        "text": "kernel",
        "a list": [kernel],
        "complex": kernel * 1j,
        "sparse": kernel.to_sparse(),
        "expanded": torch.ones(1).expand(6, 1, 3, 3),
        "without numbers": kernel.to("meta"),
    }


@pytest.mark.parametrize("kind", odd_weights())
def test_a_weight_that_is_no_plain_tensor_is_refused_by_name(kind):
    weights = pytorch_weights(decoder=False) | {"conv1.weight": odd_weights()[kind]}
    with pytest.raises(InputError, match=r"^conv1\.weight is not a dense tensor of real numbers: give the weights"):
        import_pytorch(weights)


def test_shapes_that_do_not_fit_are_compared_before_a_network_is_made_of_them():
    weights = pytorch_weights(decoder=False)
    weights["conv1.weight"] = torch.ones(2**20, 1, 3, 3)
    weights["primaryCaps.conv.weight"] = torch.ones(TYPES * CHILD_DIM, 1, 999, 999)  # a network of 33 TB
    with pytest.raises(InputError, match=r"this network would have 8\.4e\+12 parameters, most of them in primary_caps"):
        import_pytorch(weights)


@pytest.mark.parametrize("name", ["net.pt", "net.npz"])
def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused_before_it_is_unpacked(tmp_path, name):
    torch.save({"conv1.weight": torch.ones(2)}, tmp_path / "net.pt")
    np.savez_compressed(tmp_path / "net.npz", np.ones(2))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (300 << 20,)})
    bomb = "net/data/9" if name == "net.pt" else "arr_1.npy"
    with zipfile.ZipFile(tmp_path / name, "a", zipfile.ZIP_DEFLATED) as archive, archive.open(bomb, "w") as member:
        member.write(header.getvalue())
        for _ in range(300):
            member.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(InputError, match=rf"{name} would unpack to \d+ bytes, more than 256 MiB and 20 times its size"):
        import_weights(tmp_path / name, tmp_path / "net")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


class Trap:
    """What makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("name", ["net.pt", "net.npz"])
def test_nothing_that_a_file_has_pickled_is_run(tmp_path, name):
    torch.save({"conv1.weight": Trap(str(tmp_path / "sprung"))}, tmp_path / "net.pt")
    np.savez(tmp_path / "net.npz", np.array([Trap(str(tmp_path / "sprung"))], dtype=object))
    with pytest.raises(InputError, match="cannot be read as"):
        import_weights(tmp_path / name, tmp_path / "net")
    assert not (tmp_path / "sprung").exists()


def test_a_file_of_another_kind_is_refused_with_the_page_that_helps(tmp_path):
    with pytest.raises(
        InputError, match=r"trained_model.h5 is not a .pt, .pth or .npz file: docs/coming-from.md says how"
    ):
        import_weights(tmp_path / "trained_model.h5", tmp_path / "net")


def test_a_folder_that_is_not_empty_is_left_as_it_is(tmp_path):
    torch.save(pytorch_weights(), tmp_path / "net.pt")
    with pytest.raises(InputError, match="exists and is not empty: choose another folder"):
        import_weights(tmp_path / "net.pt", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]
    with pytest.raises(InputError, match=r"cannot write .*net, which is left as it was: "):
        import_weights(tmp_path / "net.pt", tmp_path / "net.pt" / "net")
