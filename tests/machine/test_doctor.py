"""`lutra doctor`: its lines, and a self-test that notices a wrong instruction."""

import dataclasses

import pytest

from lutra import machine
from lutra.compiler import targets
from lutra.errors import KernelError
from lutra.machine import doctor, limits

ROOF = limits.Roof(cores=2, gb_per_s_one=39.04, gb_per_s=52.0, int8_gops_one=950.0, int8_gops=1900.0)


def lines(monkeypatch, roof: limits.Roof) -> dict[str, str]:
    monkeypatch.setattr(doctor, "measure", lambda: roof)
    return dict(line.split(maxsplit=1) for line in machine.report().splitlines())


def test_report(monkeypatch):
    found = lines(monkeypatch, ROOF)
    assert found["reading"] == "39.0 GB/s on 1 thread, 52.0 GB/s on 2"
    assert found["int8"] == "950.0 Gop/s on 1 thread, 1900.0 Gop/s on 2"
    assert machine.isa() in found["kernels"] and "portable" in found["kernels"]
    assert found["cpu"].startswith(machine.cpu_name()) and "L1" in found["caches"]
    assert found["cores"].startswith(f"{machine.usable_cores()} usable")


def test_one_core_has_one_rate(monkeypatch):
    found = lines(monkeypatch, dataclasses.replace(ROOF, cores=1))
    assert found["reading"] == "39.0 GB/s on 1 thread"


def test_every_instruction_set_passes():
    results = machine.self_test()
    assert [isa for isa, _, _ in results] == [target.isa for target in targets.available()]
    assert all(ok for _, ok, _ in results), results


def test_a_wrong_result_is_told(monkeypatch):
    def wrong(args, tasks, isa):
        raise KernelError("probe: y[3] is 1.0 natively, 2.0 by definition")

    monkeypatch.setattr(doctor.probe, "check", wrong)
    assert machine.self_test()[-1] == ("portable", False, "probe: y[3] is 1.0 natively, 2.0 by definition")


@pytest.mark.parametrize("name", machine.__all__)
def test_public_names(name):
    assert hasattr(machine, name)
