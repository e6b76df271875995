"""Which instruction sets a computer gets: those of its architecture whose features it has, the widest first."""

import pytest

from lutra.compiler import host, targets
from lutra.errors import LutraError

RASPBERRY_PI_4 = """processor : 0
Features : fp asimd evtstrm crc32 cpuid
processor : 1
Features : fp asimd evtstrm crc32 cpuid
"""
GRAVITON_3 = "processor : 0\nFeatures : fp asimd fphp asimdhp asimddp sve i8mm bf16\n"
BIG_AND_LITTLE = RASPBERRY_PI_4 + GRAVITON_3


@pytest.fixture
def computer(monkeypatch):
    """Pretend to be a computer; available() is computed anew."""

    def become(machine: str, features: frozenset[str]) -> None:
        monkeypatch.delenv("LUTRA_ISA", raising=False)
        monkeypatch.setattr(targets, "architecture", lambda: machine)
        monkeypatch.setattr(targets, "host_features", lambda: features)
        monkeypatch.setattr(targets, "available", targets.available.__wrapped__)

    return become


@pytest.mark.parametrize("cpuinfo, isas", [
    (RASPBERRY_PI_4, ["neon", "portable"]),
    (GRAVITON_3, ["i8mm", "dotprod", "neon", "portable"]),
    (BIG_AND_LITTLE, ["neon", "portable"]),                                  # a thread may run on either core
    ("", ["neon", "portable"]),
])  # fmt: skip
def test_an_arm_computer(computer, cpuinfo, isas):
    computer("aarch64", host.parse_cpuinfo(cpuinfo) | {"neon"})
    assert [target.isa for target in targets.available()] == isas
    assert targets.choose().isa == isas[0]
    assert targets.choose("neon").features == {"neon"}


def test_a_computer_of_an_unknown_architecture_is_portable(computer):
    computer("riscv64", frozenset({"v"}))
    assert targets.choose() is targets.PORTABLE


def test_what_an_arm_computer_is_told(computer):
    computer("aarch64", frozenset({"neon"}))
    with pytest.raises(LutraError, match="expected LUTRA_ISA to be one of i8mm, dotprod, neon, portable, got 'sse9'"):
        targets.choose("sse9")
    with pytest.raises(LutraError, match="cannot run i8mm: it lacks dotprod, i8mm; use neon or unset LUTRA_ISA"):
        targets.choose("i8mm")
    with pytest.raises(LutraError, match="cannot run avx2: it is aarch64, not x86_64; use neon or unset LUTRA_ISA"):
        targets.choose("avx2")


@pytest.mark.parametrize("machine, name", [("AMD64", "x86_64"), ("arm64", "aarch64"), ("riscv64", "riscv64")])
def test_architectures_have_one_name(monkeypatch, machine, name):
    monkeypatch.setattr(host.platform, "machine", lambda: machine)
    assert host.architecture() == name


def test_llvm_may_not_know_the_features(monkeypatch):
    def fail():
        raise RuntimeError

    monkeypatch.setattr(host.llvm, "get_host_cpu_features", fail)
    monkeypatch.setattr(host, "architecture", lambda: "aarch64")
    assert "neon" in host.host_features.__wrapped__()
