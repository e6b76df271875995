"""What formats are called elsewhere: names of GGUF types and of papers → names of the catalogue.

Names are compared without regard to case.  A name that means no single format here has the reason and a way on instead.
"""

from __future__ import annotations

NAMES: dict[str, str] = {
    "Q1_0": "planes1-g128-mins",
    "Q2_0": "planes2-g64-zero1",
    "Q4_0": "planes4-g32",
    "Q4_1": "planes4-g32-mins",
    "Q5_0": "planes5-g32",
    "Q5_1": "planes5-g32-mins",
    "Q8_0": "int8-g32",
    "Q2_K": "planes2-g16-mins-u8xf16",
    "Q3_K": "planes3-g16-i8xf16",
    "Q4_K": "planes4-g32-mins-u8xf16",
    "Q5_K": "planes5-g32-mins-u8xf16",
    "Q6_K": "planes6-g16-i8xf16",
    "TQ1_0": "ternary-g256",
    "TQ2_0": "ternary-g256",
    "IQ4_NL": "iq4nl-g32",
    "IQ4_XS": "iq4nl-g32-i8xf16",
    "INT4": "planes4-g32",
    "INT8": "int8-g32",
    "MXFP4": "e2m1-g32-e8m0",
    "MXFP6": "e2m3-g32-e8m0",
    "FP8": "e4m3-row",
    "MXFP8": "e4m3-g32-e8m0",
    "MXINT4": "planes4-g32-e8m0",
    "MXINT8": "int8-g32-e8m0",
    "NVFP4": "e2m1-g16-e4m3xf32-row",
    "NVINT4": "planes4-g16-e4m3xf32-row",
    "NF4": "nf4-g64",
    "FP4": "e2m1-g64",
    "BITNET": "ternary",
    "I2_S": "ternary",
    "HLQ2": "planes1x2-g64-mins",
    "HLQ3": "planes1x3-g64-mins",
    "HLQ4": "planes1x4-g64-mins",
    "PTQTP": "ternaryx2-g128",
}
# read, quantised to and run, but not exported: quantisers make scales of 8 bits, or a factor for the tensor, and these
# types have no room for them
NOT_EXPORTED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "IQ4_XS", "NVFP4")

_LATTICE = "has codes of whole vectors, which lutra reads and does not write; near it is {near}"
_MIXTURE = "is a mixture of types; {near} is what most of its weights have, and --bpw mixes formats by what they cost"
_FLOAT = "is no format of fewer bits; as-stored keeps weights as they are"
OTHERS: dict[str, tuple[str, str]] = {
    **{name: (_LATTICE, "planes1-g128-mins") for name in ("IQ1_S", "IQ1_M")},
    **{name: (_LATTICE, "planes2-g64-mins") for name in ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")},
    **{name: (_LATTICE, "planes3-g64-mins") for name in ("IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M")},
    **{f"Q{bits}_K_{size}": (_MIXTURE, NAMES[f"Q{bits}_K"]) for bits in "2345" for size in ("S", "M", "L")},
    **{name: (_FLOAT, "") for name in ("F32", "F16", "BF16", "FP32", "FP16")},
}


def advice(name: str) -> str | None:
    """Why a name from elsewhere means no format, and what to take; None for a name that nobody uses."""
    found = OTHERS.get(name.upper())
    return None if found is None else f"{name} {found[0].format(near=found[1])}"
