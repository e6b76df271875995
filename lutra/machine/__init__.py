"""What this computer is and can do: instruction sets, caches, cores this process may use, measured roofs."""

from lutra.machine.doctor import report, self_test
from lutra.machine.limits import Roof, int8_gops, measure, read_gb_per_s, roof
from lutra.machine.system import Cache, caches, cgroup_cores, cpu_name, isa, usable_cores

__all__ = [
    "Cache", "Roof", "caches", "cgroup_cores", "cpu_name", "int8_gops", "isa", "measure", "read_gb_per_s", "report",
    "roof", "self_test", "usable_cores",
]  # fmt: skip
