"""A format drawn as text: what `lutra inspect format` prints."""

from __future__ import annotations

from lutra.formats import packing
from lutra.formats.format import Format
from lutra.formats.scales import DTYPES, LARGEST


def draw(form: Format, source: str) -> str:
    """Return the size, value and bytes of a format, as lines of text; the bytes are rows of bit fields."""
    sets = f"{form.terms} sets of {form.num_codes} codes" if form.terms > 1 else f"{form.num_codes} codes"
    scales = f"{form.terms} scales" if form.terms > 1 else "one scale"
    lines = [
        f"{form.name}   {form.storage} of {_bits(form)}, {sets}, {scales} per {_per(form.group_size)}",
        "",
        *_value(form),
        f"size         {_size(form)}",
        f"activations  {_activations(form)}",
        f"beside       {_beside(form)}",
        f"source       {source}",
        "",
        *_picture(form),
    ]
    return "\n".join(lines)


def _activations(form: Format) -> str:
    per = f"{form.activation_group} values" if form.activation_group else "token"
    return "f32, as they are" if form.is_float else f"int8, one scale per {per}"


def _bits(form: Format) -> str:
    return f"{form.bits} bit{'s' if form.bits > 1 else ''}"


def _per(group_size: int) -> str:
    return f"{group_size} weights" if group_size else "row"


def _value(form: Format) -> list[str]:
    """The formula, and what its words stand for where they are not arrays."""
    group = f"k // {form.group_size}" if form.group_size else "0"
    plural = "" if _is_derived(form) else "s"
    least = f" + min{plural}[n, {group}]" if form.offset == "mins" else ""
    lines = [f"value        W[n, k] = {_scaled(form, group, plural)}{least}"]
    if form.is_float:
        lines.append(f"level        the {form.levels} float whose bits a code is, at most {LARGEST[form.levels]}")
    elif form.levels != "uniform":
        lines.append(f"level        of code 0 to {form.num_codes - 1}: {' '.join(map(str, form.level_values))}")
    if form.scale_dtype == "e8m0":
        lines.append("scale        2 ** (scales - 127)")
    if form.scale_kind == "two-level":
        upper = f"k // {form.super_group}" if form.super_group else "0"
        lines.append(f"scale        scales * super_scales[n, {upper}]")
        lines += [f"min          mins * super_mins[n, {upper}]"] if form.offset == "mins" else []
    return lines


def _scaled(form: Format, group: str, plural: str) -> str:
    """Scale times level; summed over the terms where there are several."""
    level, index, total = ("code" if form.levels == "uniform" else "level"), group, ""
    if form.terms > 1:
        total = f"sum over t = 0 .. {form.terms - 1} of "
        level, index = f"{level}[t]", f"{form.terms} ({group}) + t" if form.group_size else "t"
    level += f" - {form.zero}" if form.zero else ""
    level += f" - zeros[n, {group}]" if form.offset == "zeros" else ""
    return f"{total}scale{plural}[n, {index}] * " + (f"({level})" if "-" in level else level)


def _is_derived(form: Format) -> bool:
    """Whether a scale is something else than the number stored."""
    return form.scale_kind == "two-level" or form.scale_dtype == "e8m0"


def _size(form: Format) -> str:
    """Bits per weight and what they are made of; for rows, bytes beside the codes."""
    codes = form.bits * form.terms
    widths = {name: 8 * DTYPES[dtype].itemsize for name, (dtype, _) in form.beside(1).items()}
    upper = sum(bits for name, bits in widths.items() if name.startswith("super"))
    lower = sum(bits * (form.terms if name == "scales" else 1) for name, bits in widths.items()) - upper
    if not form.group_size:
        return f"{codes} bit{'s' if codes > 1 else ''} per weight, plus {lower // 8} bytes per row"
    total = codes + lower / form.group_size + (upper / form.super_group if form.super_group else 0)
    parts = f"{codes} and {lower} bits per {form.group_size} weights"
    if upper and form.super_group:
        parts += f" and {upper} per {form.super_group}"
    if upper and not form.super_group:
        parts += f", plus {upper // 8} bytes per row"
    return f"{total:g} bits per weight: {parts}"


def _beside(form: Format) -> str:
    counts = {"scales": form.group_size, "zeros": form.group_size, "mins": form.group_size}
    found = []
    for name, (dtype, _) in form.beside(1).items():
        size = counts.get(name, form.super_group)
        columns = f"K/{size}" if size else "1"
        if name == "scales" and form.terms > 1:
            columns = f"{form.terms} K/{size}" if size else str(form.terms)
        found.append(f"{name} {dtype} [N, {columns}]")
    return ", ".join(found)


def _picture(form: Format) -> list[str]:
    """Draw the words until they repeat: one for widths that divide a byte, a whole block for the others."""
    words = packing.layout(form.bits)
    if len(packing.FIELDS[form.bits]) == 1:
        words = words[:1]
    weights = packing.BLOCK if len(words) > 1 else packing.BLOCK // form.bits
    lines = ["a group's codes of one term lie behind those of the term before", ""] if form.terms > 1 else []
    size = f"{weights} weights w0 to w{weights - 1} in {4 * len(words)} bytes"
    lines.append(f"{size}, low K first, then the next {weights}:")
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
