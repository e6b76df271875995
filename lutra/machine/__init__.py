"""What this computer is and can do: instruction sets, caches, cores this process may use, measured roofs."""

from lutra.machine.doctor import report, self_test
from lutra.machine.limits import (
    Roof,
    bytes_read,
    int8_gops,
    measure,
    multiply_program,
    read_gb_per_s,
    read_programs,
    roof,
)
from lutra.machine.system import Cache, available_bytes, caches, cgroup_cores, cpu_name, isa, usable_cores

__all__ = [
    "Cache", "Roof", "available_bytes", "bytes_read", "caches", "cgroup_cores", "cpu_name", "int8_gops", "isa",
    "measure", "multiply_program", "read_gb_per_s", "read_programs", "report", "roof", "self_test", "usable_cores",
]  # fmt: skip
