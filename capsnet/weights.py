"""Import of weights that two well-known implementations have trained, as a CapsNet that computes the same.

A layout is a table of their name of a weight, ours, and its axes there and here in einops' notation: the axes of
routing (i j d e), `h w` for a place on the grid of primary capsules, `type` for their type, and `y x c` for a pixel.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile, is_zipfile

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from capsnet.data.npz import read_arrays, read_headers
from capsnet.errors import InputError
from capsnet.files import atomic_write, check_regular, check_unpacked, reading
from capsnet.models import CapsNet


class Move(NamedTuple):
    """One weight's name and axes, there and here."""

    theirs: str
    ours: str
    axes: str  # theirs -> ours


KERNEL, LAYER, BIAS = (f"{axes} -> {axes}" for axes in ("target source down across", "target source", "target"))
PYTORCH_ENCODER = (
    Move("conv1.weight", "conv1.weight", KERNEL),
    Move("conv1.bias", "conv1.bias", BIAS),
    Move("primaryCaps.conv.weight", "primary_caps.conv.weight", KERNEL),
    Move("primaryCaps.conv.bias", "primary_caps.conv.bias", BIAS),
    Move("digitCaps.weights", "digit_caps.weight", "i d (j e) -> i j d e"),
    Move("digitCaps.routing_module.b", "digit_caps.prior", "i j -> i j"),
)
PYTORCH_DECODER = tuple(
    Move(f"reconstruction_net.fc{n}.{part}", f"decoder.layers.{2 * n - 2}.{part}", axes)
    for n in (1, 2, 3)
    for part, axes in (("weight", LAYER), ("bias", BIAS))
)
KERAS_KERNEL, KERAS_LAYER = "down across source target -> target source down across", "source target -> target source"
KERAS_ENCODER = (
    Move("conv1/kernel", "conv1.weight", KERAS_KERNEL),
    Move("conv1/bias", "conv1.bias", BIAS),
    Move("primarycap_conv2d/kernel", "primary_caps.conv.weight", KERAS_KERNEL),
    Move("primarycap_conv2d/bias", "primary_caps.conv.bias", BIAS),
    Move("digitcaps/W", "digit_caps.weight", "j (h w type) e d -> (type h w) j d e"),
)
KERAS_DECODER = (
    Move("decoder's kernel 1", "decoder.layers.0.weight", KERAS_LAYER),
    Move("decoder's bias 1", "decoder.layers.0.bias", BIAS),
    Move("decoder's kernel 2", "decoder.layers.2.weight", KERAS_LAYER),
    Move("decoder's bias 2", "decoder.layers.2.bias", BIAS),
    Move("decoder's kernel 3", "decoder.layers.4.weight", "source (y x c) -> (c y x) source"),
    Move("decoder's bias 3", "decoder.layers.4.bias", "(y x c) -> (c y x)"),
)
STRIDE = 2  # of the primary capsules in both; it cannot be inferred from the weights


def import_pytorch(state_dict: Mapping[str, Tensor], iterations: int = 3) -> CapsNet:
    """Make a CapsNet of the weights of github.com/adambielski/CapsNet-pytorch (net.py), with its learned prior.

    `state_dict` is that of its CapsNet, or of its CapsNetWithReconstruction, whose decoder is imported too.
    `iterations` is its --routing_iterations, which counts updates of the logits: there is one weighted sum more.

    Sizes are inferred from the shapes. Images are square: of the decoder's size or, without a decoder, of the largest
    size with this number of capsules (28 pixels for 6x6 places). Results differ only at zero capsules, where theirs
    are NaN.

    weights [i, d, (j e)] → [i, j, d, e], b [i, j] → prior [i, j]
    Raises InputError for a weight that is missing, unknown or of a shape that does not match the others.
    """
    if iterations < 0:
        raise InputError(f"--routing_iterations of CapsNet-pytorch is at least 0, not {iterations}: one less than here")
    has_decoder = any(name.startswith(("capsnet.", "reconstruction_net.")) for name in state_dict)
    prefix, decoder = ("capsnet.", PYTORCH_DECODER) if has_decoder else ("", ())
    layout = [*(move._replace(theirs=prefix + move.theirs) for move in PYTORCH_ENCODER), *decoder]
    tensors = _checked(state_dict, layout)
    matrices, prior = (tensors[f"{prefix}digitCaps.{name}"].shape for name in ("weights", "routing_module.b"))
    routed = (matrices[0], prior[1], matrices[1], max(1, matrices[2] // prior[1]))  # i, j, d, e
    return _network(tensors, layout, routed, iterations=iterations + 1, prior=True)


def import_keras(weights: Sequence[np.ndarray], iterations: int = 3) -> CapsNet:
    """Make a CapsNet of the weights of github.com/XifengGuo/CapsNet-Keras (capsulenet.py), or of others of its layout.

    `weights` is the list of `model.get_weights()`: kernel and bias of conv1 and of the primary capsules, W and, if
    there is a decoder, kernel and bias of its three layers. `iterations` is its --routings, which has the same meaning.
    Kernels are (down, across, source, target); capsules and pixels are ordered by place, then by type or channel.

    Sizes are inferred from the shapes as in `import_pytorch`. Its squash adds 1e-7 to the squared length under the
    root: a vector of length 0.001 comes out 5 % shorter than ours, one of length 0.1 the same. It adds as much where it
    computes the lengths, which are 3e-4 for a zero capsule.

    W [j, (h w type), e, d] → [(type h w), j, d, e]
    Raises InputError for a list of another length and for an array of a shape that does not match the others.
    """
    layout = [*KERAS_ENCODER, *KERAS_DECODER][: len(weights)]
    if len(weights) not in (len(KERAS_ENCODER), len(KERAS_ENCODER + KERAS_DECODER)):
        raise InputError(f"model.get_weights() lists 11 arrays, or 5 without a decoder, not {len(weights)}: give all")
    arrays = (torch.from_numpy(np.array(array, dtype=np.float32)) for array in weights)
    tensors = _checked(dict(zip((move.theirs for move in layout), arrays, strict=True)), layout)
    routed = rearrange(tensors["digitcaps/W"], "j i e d -> i j d e").shape
    return _network(tensors, layout, routed, iterations=iterations)


def import_weights(source: Path, folder: Path, *, iterations: int = 3) -> Path:
    """Write a folder for `CapsNet.from_pretrained` (config.json, model.safetensors), atomically.

    `source` is a .pt or .pth file for `import_pytorch`: a state dict, or a checkpoint that has one under "state_dict",
    "model_state_dict" or "model"; or an .npz file for `import_keras`, as np.savez(file, *model.get_weights()) writes
    it. `iterations` is theirs, as they count. Pickled classes are never loaded.

    Raises InputError for a file of another content, weights that do not match, and a folder that is not empty.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty: choose another folder")
    if source.suffix not in (".pt", ".pth", ".npz"):
        raise InputError(f"{source} is not a .pt, .pth or .npz file: docs/coming-from.md says how to make one")
    if source.suffix == ".npz":
        network = import_keras(_read_arrays(source), iterations)
    else:
        network = import_pytorch(_read_state_dict(source), iterations)
    with atomic_write(folder.resolve()) as part:
        network.save_pretrained(part)
    return folder


def _read_state_dict(source: Path) -> Mapping[str, Any]:
    way_out = "write it with torch.save(model.state_dict(), file)"
    check_regular(source)
    try:
        state = _load_state(source)
    except InputError:
        raise
    except Exception as error:  # PyTorch's message, which advises to load the pickle nevertheless, is left out
        raise InputError(f"{source} cannot be read as a state dict ({type(error).__name__}): {way_out}") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise InputError(f"{source} holds no state dict: {way_out}")
    return state


def _load_state(source: Path) -> Any:
    with warnings.catch_warnings(), source.open("rb") as file:
        warnings.simplefilter("ignore")  # of a TorchScript archive, for one, which is refused next
        if is_zipfile(file):
            with ZipFile(file) as archive:
                check_unpacked(source, sum(info.file_size for info in archive.infolist()), "save it by torch.save")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def _read_arrays(source: Path) -> list[np.ndarray]:
    way_out = "write it with np.savez(file, *model.get_weights())"
    arrays = read_arrays(source, read_headers(source, hint=way_out), way_out)
    with reading(source, "numbered arrays", way_out):
        return [arrays[f"arr_{k}"].astype(np.float32) for k in range(len(arrays))]


def _checked(weights: Mapping[str, Any], layout: Sequence[Move]) -> dict[str, Tensor]:
    """The weights of a layout in float32 on the CPU, with none missing or unknown and each with the right axes."""
    wanted = {move.theirs: move.axes.split(" -> ")[0] for move in layout}
    for name in [*wanted, *weights]:
        if name not in weights:
            raise InputError(f"{name} is missing: give all {len(wanted)} weights of the network")
        if name not in wanted:
            raise InputError(f"{name} is not a weight of this network: leave it out")
        if not _is_dense(weights[name]):
            raise InputError(f"{name} is not a dense tensor of real numbers: give the weights as they are trained")
        shape = list(weights[name].shape)
        if len(shape) != len(re.sub(r"\(.*?\)", "together", wanted[name]).split()) or 0 in shape:
            raise InputError(f"{name} is {shape}, but should be [{wanted[name]}]")
    return {name: weights[name].detach().cpu().float() for name in wanted}


def _is_dense(weight: Any) -> bool:
    """Whether a weight is a tensor that stores all its numbers: not sparse, quantized, complex or expanded."""
    if not isinstance(weight, Tensor) or weight.is_nested or weight.layout != torch.strided or weight.is_quantized:
        return False
    held = weight.device.type != "meta" and weight.numel() * weight.element_size() <= weight.untyped_storage().nbytes()
    return held and not weight.is_complex()


def _network(tensors: Mapping[str, Tensor], layout: Sequence[Move], routed: Sequence[int], **options: Any) -> CapsNet:
    """The network with these weights, its sizes inferred; `routed` is the shape [i, j, d, e] of the matrices."""
    conv1, primary = (rearrange(tensors[layout[k].theirs], layout[k].axes).shape for k in (0, 2))
    (conv_channels, channels, conv_kernel, _), (children, classes, child_dim, capsule_dim) = conv1, routed
    types, least = max(1, primary[0] // child_dim), conv_kernel + primary[2] - 1
    side = least - 1 + STRIDE * isqrt(children // types)  # the largest with this number of capsules
    options |= {"conv_channels": conv_channels, "conv_kernel": conv_kernel, "capsule_dim": capsule_dim}
    options |= {"primary_types": types, "primary_dim": child_dim, "primary_kernel": primary[2], "decoder": "none"}
    if layout[-1].ours.startswith("decoder."):
        side, options["decoder"] = isqrt(len(tensors[layout[-1].theirs]) // channels), "dense"
    shape = (channels, max(side, least), max(side, least))
    with torch.device("meta"):  # without memory, since the sizes may be anything before the shapes are compared
        skeleton = CapsNet(shape, classes, primary_stride=STRIDE, **options)
    state = _rearranged(skeleton, tensors, layout)
    network = CapsNet(shape, classes, primary_stride=STRIDE, **options)
    network.load_state_dict(state)
    return network.eval()


def _rearranged(network: CapsNet, tensors: Mapping[str, Tensor], layout: Sequence[Move]) -> dict[str, Tensor]:
    """The weights by our names, with our axes."""
    sizes = dict(zip("hwyxj", (*network.grid, *network.image_shape[1:], network.classes), strict=True))
    state = {}
    for theirs, ours, axes in layout:
        there, here = axes.split(" -> ")
        known = {axis: size for axis, size in sizes.items() if axis in re.findall(r"\w+", axes)}
        wanted = rearrange(network.get_parameter(ours), f"{here} -> {there}", **known).shape
        if tensors[theirs].shape != wanted:
            raise InputError(f"{theirs} is {list(tensors[theirs].shape)}, but the other weights need {list(wanted)}")
        state[ours] = rearrange(tensors[theirs], axes, **known).clone(memory_format=torch.contiguous_format)
    return state
