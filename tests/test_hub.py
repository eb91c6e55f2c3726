"""A network's folder is loaded or refused in one line, whatever its content; the hub is asked for hub names only."""

import json
import random
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file

from capsnet.baselines import ConvBaseline
from capsnet.checks import MAX_PARAMETERS
from capsnet.errors import InputError
from capsnet.models import CapsNet

SMALL = {"conv_channels": 4, "conv_kernel": 3, "primary_types": 2, "primary_kernel": 3, "capsule_dim": 6}


@pytest.fixture(scope="module", params=["capsnet", "baseline"])
def saved(request, tmp_path_factory):
    """A folder with a small network, and the network's class. Read it only."""
    folder = tmp_path_factory.mktemp("saved")
    network = CapsNet((1, 8, 8), 3, **SMALL) if request.param == "capsnet" else ConvBaseline((1, 8, 8), 3, "small")
    network.save_pretrained(folder)
    return folder, type(network)


@pytest.fixture
def copied(saved, tmp_path):
    """The same, to spoil."""
    folder, kind = saved
    return shutil.copytree(folder, tmp_path / "net"), kind


def refusal(kind, folder):
    """What a folder that cannot be loaded is answered with."""
    with pytest.raises(InputError) as refused:
        kind.from_pretrained(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[1]", b"null", b"3", b"{}", b"{", b"\xff\xfe", b"NaN", 100_000 * b"[", b'{"a": ' * 100_000),
        *(b" " * (17 << 20), b'{"classes": 1' + 6000 * b"0" + b"}"),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_config_that_is_none_is_refused_by_the_name_of_its_file(copied, content):
    folder, kind = copied
    (folder / "config.json").write_bytes(content)
    assert refusal(kind, folder).startswith(f"{folder / 'config.json'} is damaged: ")


ODD = (None, -1, 0, 1.5, 1e9, 2**31, 10**400, True, "3", [], [1], {}, float("nan"), float("inf"), "x" * 1000)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:12])
def test_a_field_of_the_config_with_an_odd_value_is_refused(copied, odd):
    folder, kind = copied
    config = json.loads((folder / "config.json").read_text())
    for name, value in config.items():
        if (name, odd) in (("negative_slope", 0), ("primary_scale", 1.5)) or (isinstance(value, bool) and odd is True):
            continue  # which it may have
        (folder / "config.json").write_text(json.dumps(config | {name: odd}))
        assert name in refusal(kind, folder) or "parameters" in refusal(kind, folder), name


def test_a_key_that_is_missing_or_unknown_is_named(copied):
    folder, kind = copied
    config = json.loads((folder / "config.json").read_text())
    for name in config:
        (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key != name}))
        assert f"{name}: Field required" in refusal(kind, folder)
    (folder / "config.json").write_text(json.dumps(config | {"wings": 2}))
    assert "wings: Extra inputs are not permitted" in refusal(kind, folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_file_that_is_missing_or_a_folder_is_named(copied, file):
    folder, kind = copied
    (folder / file).unlink()
    assert f"{folder / file} cannot be read: " in refusal(kind, folder)
    (folder / file).mkdir()
    assert f"{folder / file} cannot be read: " in refusal(kind, folder)


def test_weights_that_are_missing_unknown_or_of_another_shape_are_named(copied):
    folder, kind = copied
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    for other in (
        {key: value for key, value in weights.items() if key != name},
        weights | {name: torch.zeros(2, 2)},
        weights | {"wings": torch.zeros(2)},
    ):
        save_file(other, path)
        message = refusal(kind, folder)
        assert message.startswith(f"{path} does not hold the weights of its config.json: ")
        assert name in message or "wings" in message


def test_a_damaged_folder_is_refused_in_one_line_or_loads(copied):
    folder, kind = copied
    intact = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    header = 8 + int.from_bytes(intact["model.safetensors"][:8], "little")
    draw, loaded = random.Random(0), 0
    for k in range(200):
        file = draw.choice(list(intact))
        content = bytearray(intact[file])
        if draw.random() < 0.2:
            del content[draw.randrange(len(content)) :]
        else:
            place = draw.randrange(8 if k % 5 == 0 else min(header, len(content)))
            content[place] ^= 1 << draw.randrange(8)
        (folder / file).write_bytes(content)
        with suppress(InputError):
            kind.from_pretrained(folder)
            loaded += 1
        (folder / file).write_bytes(intact[file])
    assert loaded < 50


def test_a_config_of_more_than_its_weights_takes_no_memory(copied):
    folder, kind = copied
    config = json.loads((folder / "config.json").read_text())
    larger = {"image_shape": [1, 900, 900]} | ({"capsule_dim": 16} if kind is CapsNet else {})
    (folder / "config.json").write_text(json.dumps(config | larger))  # of 4 and 7 GB
    before = torch.get_rng_state()
    assert "size mismatch" in refusal(kind, folder)
    assert torch.equal(torch.get_rng_state(), before)  # no weights were drawn


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: CapsNet(capsule_dim=2**20), "digit_caps"),
        (lambda: CapsNet((3, 2**16, 2**16), shared=True, capsule_dim=1), "decoder"),
        (lambda: CapsNet((3, 2**14, 2**14), shared=True, decoder="conv"), "decoder"),
        (lambda: CapsNet(primary_types=2**20, primary_dim=2**20), "primary_caps"),
        (lambda: CapsNet((2**20, 99, 99), conv_channels=2**20), "conv1"),
        (lambda: CapsNet((1, 999, 999), 2**10, prior=True, shared=True, decoder="none"), "prior"),
        (lambda: ConvBaseline((1, 2**20, 2**20)), "head"),
    ],
)
def test_a_network_of_too_many_parameters_is_refused_by_its_largest_part(make, part):
    with pytest.raises(InputError, match=rf"would have .* parameters, most of them in {part}: choose smaller"):
        make()


@pytest.mark.parametrize(
    "options", [{}, {"shared": True, "prior": True}, {"decoder": "conv"}, {"decoder": "none", "bias": True}], ids=str
)
def test_parameters_are_counted_to_within_a_few_percent(options, monkeypatch):
    counts = {}
    monkeypatch.setattr("capsnet.models.check_parameters", lambda **parts: counts.update(parts))
    with torch.device("meta"):
        network = CapsNet(**options)
    actual = sum(parameter.numel() for parameter in network.parameters())
    assert sum(counts.values()) == pytest.approx(actual, rel=0.1)
    assert actual < MAX_PARAMETERS


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *((name, value) for name in ("iterations", "classes", "conv_channels") for value in ("3", 3.0, True, None, -1)),
        *(("negative_slope", value) for value in (float("nan"), "0.1", True, 2, -1)),
        *(("primary_scale", value) for value in (float("inf"), 0, "1")),
        *(("image_shape", value) for value in ((28, 28), "abc", 28, (1, 28, 28.0), (1, 28, 0), None)),
        *(("prior", value) for value in (1, "yes", None)),
        *((name, value) for name in ("gradient", "initialisation", "decoder") for value in ("x", None, [])),
    ],
)
def test_an_argument_of_another_type_or_out_of_bounds_is_named(argument, value):
    with pytest.raises(InputError, match=rf"^{argument}[ .:]"):
        CapsNet(**{argument: value})


@pytest.mark.parametrize("shape", [[1, 12, 12], torch.Size([1, 12, 12])], ids=lambda shape: type(shape).__name__)
def test_an_image_shape_may_be_a_list_or_a_size(shape):
    assert CapsNet(shape, 3, **SMALL).image_shape == (1, 12, 12)


def test_an_argument_of_the_config_may_be_replaced(tmp_path):
    CapsNet((1, 8, 8), 3, **SMALL).save_pretrained(tmp_path)
    assert CapsNet.from_pretrained(tmp_path, iterations=5).digit_caps.iterations == 5
    with pytest.raises(InputError, match="iterations must be less than or equal to 100"):
        CapsNet.from_pretrained(tmp_path, iterations=1000)


@pytest.mark.parametrize(
    "name",
    [
        *("runs/typo", "./typo", "../typo", "a/b/c", "/no/where", "~/no-where-at-all", "~nosuchuser/net", "a\\b"),
        *("user/", "net", "", "a\0b", "x" * 300, "user/model/"),
    ],
)
def test_what_is_no_hub_name_is_refused_without_asking_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr("capsnet.hub.hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    message = refusal(CapsNet, name)
    assert "is neither a network's folder nor a hub name" in message or "cannot be used as a path" in message


def test_a_hub_name_goes_to_the_hub_and_a_failure_there_is_one_line():
    program = "import sys; from capsnet import CapsNet, InputError\ntry: CapsNet.from_pretrained('user/model')\n"
    program += "except InputError as error: print(error)"
    environment = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "PATH": "/usr/bin:/bin"}
    environment |= {"PYTHONPATH": ":".join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.stdout.startswith("user/model is not a folder, and cannot be loaded from the hub: "), result.stderr
    assert result.stdout.count("\n") == 1


def test_a_configuration_with_the_old_names_of_arguments_is_read(tmp_path):
    sizes = {"conv_channels": 4, "conv_kernel": 3, "primary_types": 2, "primary_kernel": 3}
    network = CapsNet((1, 8, 8), 3, none_of_the_above=True, negative_slope=0.25, **sizes)
    network.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    old = config.replace('"none_of_the_above"', '"leaky"').replace('"negative_slope"', '"slope"')
    assert old != config
    (tmp_path / "config.json").write_text(old)
    loaded = CapsNet.from_pretrained(tmp_path)
    assert loaded.digit_caps.none_of_the_above
    assert loaded.negative_slope == 0.25
