"""A format drawn as text: what `lutra inspect format` prints."""

from __future__ import annotations

from lutra.formats import packing
from lutra.formats.format import Format


def draw(form: Format, source: str) -> str:
    """Return the size, value and bytes of a format, as lines of text; the bytes are rows of bit fields."""
    offset_dtype = "u8" if form.offset == "zeros" else form.scale_dtype
    beside = {"scales": form.scale_dtype} | ({} if form.offset == "none" else {form.offset: offset_dtype})
    groups = f"K/{form.group_size}" if form.group_size else "1"
    lines = [
        f"{form.name}   {form.storage} of {_bits(form)}, {form.num_codes} codes, one scale per {_per(form.group_size)}",
        "",
        f"value        {_value_formula(form)}",
        f"size         {_size(form)}",
        f"activations  int8, one scale per {f'{form.activation_group} values' if form.activation_group else 'token'}",
        f"beside       {', '.join(f'{name} {dtype} [N, {groups}]' for name, dtype in beside.items())}",
        f"source       {source}",
        "",
        *_picture(form),
    ]
    return "\n".join(lines)


def _bits(form: Format) -> str:
    return f"{form.bits} bit{'s' if form.bits > 1 else ''}"


def _per(group_size: int) -> str:
    return f"{group_size} weights" if group_size else "row"


def _value_formula(form: Format) -> str:
    group = f"k // {form.group_size}" if form.group_size else "0"
    code = "code" if form.zero == 0 else f"code - {form.zero}"
    code += f" - zeros[n, {group}]" if form.offset == "zeros" else ""
    code = f"({code})" if "-" in code else code
    return f"W[n, k] = scales[n, {group}] * {code}" + (f" + mins[n, {group}]" if form.offset == "mins" else "")


def _size(form: Format) -> str:
    if not form.group_size:
        return f"{_bits(form)} per weight, plus {form.group_bits() // 8} bytes per row"
    total = form.bits + form.group_bits() / form.group_size
    return f"{total:g} bits per weight: {form.bits} and {form.group_bits()} bits per {form.group_size} weights"


def _picture(form: Format) -> list[str]:
    """Draw the words until they repeat: one for widths that divide a byte, a whole block for the others."""
    words = packing.layout(form.bits)
    if len(packing.FIELDS[form.bits]) == 1:
        words = words[:1]
    weights = packing.BLOCK if len(words) > 1 else packing.BLOCK // form.bits
    lines = [f"{weights} weights w0 to w{weights - 1} in {4 * len(words)} bytes, low K first, then the next {weights}:"]
    for word in words:
        high = word.low + word.width - 1
        part = f"bit {high}" if high == word.low else f"bits {high}-{word.low}"
        lines += ["", f"  {part} of each code"] if len(words) > 1 else [""]
        lines += _word_picture(word, 4 * words.index(word))
    return lines


def _word_picture(word: packing.Word, first_byte: int) -> list[str]:
    shifts = range(8 - word.width, -1, -word.width)
    head = [f"{low + word.width - 1}-{low}" if word.width > 1 else str(low) for low in shifts]
    lines = ["  " + "bit".ljust(10) + "".join(f"  {field:<4}" for field in head).rstrip()]
    for byte in range(4):
        fields = [f"w{word.first + 4 * (low // word.width) + byte}" for low in shifts]
        lines.append("  " + f"byte {first_byte + byte}".ljust(10) + "".join(f"| {field:<4}" for field in fields) + "|")
    return lines
