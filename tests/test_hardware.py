"""The description of the machine, whether it is fast at bf16, and that freed memory is kept."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from capsnet import hardware
from capsnet.hardware import environment, fast_bf16

CPU = torch.device("cpu")


def test_the_environment_has_hardware_versions_commit_and_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/capsnet", "train", "digits"])
    found = environment(CPU)
    assert found.keys() == {"device", "cores", "platform", "python", "torch", "capsnet", "commit", "command"}
    assert all(value for name, value in found.items() if name != "commit")
    assert found["torch"] == torch.__version__
    assert found["commit"] is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", found["commit"])
    assert found["command"] == "capsnet train digits"


def test_a_changed_checkout_is_dirty(tmp_path):
    def git(*words):
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *author, *words], check=True, capture_output=True)

    package = tmp_path / "capsnet"
    package.mkdir()
    for name in ("hardware.py", "errors.py"):
        shutil.copy(Path(hardware.__file__).with_name(name), package)
    (package / "__init__.py").touch()
    git("init")
    git("add", ".")
    git("commit", "--message", "all")
    program = "from capsnet.hardware import _commit; print(_commit())"

    def commit():
        how = [sys.executable, "-B", "-c", program]
        return subprocess.run(how, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    clean = commit()
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (package / "__init__.py").write_text("# changed")
    assert commit() == f"{clean}-dirty"


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setattr(hardware, "which", lambda program: None)
    assert environment(CPU)["commit"] is None


@pytest.mark.parametrize(
    ("flags", "fast"),
    [("fpu avx512_bf16", True), ("amx_bf16 avx2", True), ("fpu avx2 avx512f", False), ("", False)],
)
def test_a_cpu_is_fast_at_bf16_if_it_has_instructions_for_it(monkeypatch, flags, fast):
    monkeypatch.setattr(hardware, "_cpu", lambda: {"flags": flags})
    assert fast_bf16(CPU) is fast


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_is_fast_at_bf16_from_capability_8_on(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fast_bf16(torch.device("cuda")) is fast


def test_another_device_is_not_known_to_be_fast_at_bf16():
    assert not fast_bf16(torch.device("mps"))


def test_a_machine_without_cpuinfo_is_described_too(monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(hardware.Path, "read_text", absent)
    monkeypatch.setattr(hardware, "_cpu", hardware._cpu.__wrapped__)
    assert environment(CPU)["device"]
    assert not fast_bf16(CPU)


ROUNDS = """
import resource
import torch
from capsnet.hardware import keep_freed_memory

keep_freed_memory()
faults = []
for _ in range(30):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**24).fill_(1.0)  # 64 MiB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the settings of glibc's malloc")
def test_memory_that_is_freed_and_allocated_again_causes_no_page_faults():
    result = subprocess.run([sys.executable, "-c", ROUNDS], capture_output=True, text=True, check=True)
    faults = [int(word) for word in result.stdout.split()]
    assert faults[0] > 20  # 64 MiB are 32 huge pages at least
    assert sum(faults[-10:]) < 20
