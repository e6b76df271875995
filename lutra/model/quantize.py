"""From any model to a quantised one, layer by layer: read, quantise, put on disk; at the end one file.

Work in progress lies in a folder beside the target, `.NAME.part`: job.json says what was asked for, and a file per
layer what is done.  Whoever asks for the same again goes on where that ended, and gets the same file to the last bit.
Memory holds one layer of floats, and for calibrated methods the residual of the calibration text.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lutra import __version__
from lutra.errors import FileError, RequestError
from lutra.files import lock, open_model, saved
from lutra.files.door import check_apart, refusal
from lutra.files.identity import identity
from lutra.files.model_file import ModelFile
from lutra.files.names import LINEARS
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.formats.vectors import VectorFormat, VectorWeight
from lutra.model import awq, calibrate
from lutra.model.config import ModelConfig, config_from, to_json
from lutra.model.load import Progress, Reader
from lutra.model.recipe import ERROR_FEEDBACK, Recipe, plan
from lutra.model.rope import rope_frequencies
from lutra.model.tokenizer import Tokenizer, to_stored
from lutra.model.weights import Matrix, widen
from lutra.quantize.gptq import Factor, gptq
from lutra.quantize.lorc import low_rank
from lutra.quantize.methods import METHODS, Quantise, method_for
from lutra.quantize.vptq import vptq

SUFFIX = ".safetensors"
NORMS = ("attn_norm", "q_norm", "k_norm", "attn_sub_norm", "ffn_norm", "ffn_sub_norm")
VECTORS = (*NORMS, *(f"{name}.bias" for name in ("q", "k", "v", "o")))
HEAD_ROWS = 8192  # that are floats at a time
JOB, OUTSIDE, JOINED = "job.json", "outside" + SUFFIX, "joined" + SUFFIX

Tensors = dict[str, Matrix]


@dataclass(frozen=True)
class Summary:
    """What was written.

    token_bytes  of weights that a decode step reads
    weights      {name: (format, bytes, N * K, sum of squares, sum of squared errors)} of quantised weights
    """

    path: Path
    file_bytes: int
    token_bytes: int
    weights: Mapping[str, tuple[str, int, int, float, float]]

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(row[1] for row in self.weights.values()) / max(1, sum(row[2] for row in self.weights.values()))

    def sqnr_db(self) -> dict[str, float]:
        """Signal to noise of each kind of weight (q, k, ... head) over all layers, in dB."""
        sums: dict[str, list[float]] = {}
        for name, (*_, signal, noise) in self.weights.items():
            kind = sums.setdefault(name.rsplit(".", 1)[-1], [0.0, 0.0])
            kind[0], kind[1] = kind[0] + signal, kind[1] + noise
        return {kind: 10 * np.log10(signal / noise) if noise else np.inf for kind, (signal, noise) in sums.items()}

    def formats(self) -> dict[str, int]:
        """How many weights have which format."""
        return dict(Counter(row[0] for row in self.weights.values()))


def quantize(
    source: str | Path, target: str | Path, recipe: Recipe, text: str | None, threads: int, progress: Progress
) -> Summary:
    """Write a quantised model.

    source   any model that lutra opens and that is not packed
    target   a name that ends in .safetensors
    text     to calibrate on, None for methods that do not
    raises   FormatError    a format there is not, or that no method writes; weights that are not finite
             RequestError   a method there is not, one that needs a text and has none, a target without the suffix, or
                            one that another run is writing
             FileError      the source is no model lutra runs, or the target cannot be written
    """
    target = Path(target).expanduser()
    if target.suffix != SUFFIX:
        raise RequestError(f"expected a file name that ends in {SUFFIX}, got {target.name!r}; add the ending")
    source = Path(source).expanduser()
    check_apart(source, target)
    job = Job.of(source, target, recipe, text, threads)
    with job.alone():
        job.prepare()
        total = job.config.num_layers + 2
        progress("embedding and head", 0, total)
        job.once(OUTSIDE, job.outside)
        for index, write in enumerate(job.layers()):
            progress(f"layer {index + 1} of {job.config.num_layers}", index + 1, total)
            write()
        job.finish(progress)
    return job.summary()


def work_folder(target: str | Path) -> Path:
    """The folder beside a target where work in progress lies."""
    path = Path(target).expanduser()
    return path.with_name(f".{path.name}.part")


@dataclass(frozen=True)
class Job:
    """One model on its way.

    formats   of the weights that change, None for those that stay as stored
    windows   token ids to calibrate on
    """

    source: Path
    target: Path
    recipe: Recipe
    config: ModelConfig
    formats: dict[str, Format | None]
    windows: list[list[int]]
    threads: int

    @classmethod
    def of(cls, source: Path, target: Path, recipe: Recipe, text: str | None, threads: int) -> Job:
        file = open_model(source)
        if file.kind == "packed":
            raise RequestError(f"expected a model to quantise, got {source}, which is packed; give what it was made of")
        config = config_from(file)
        _check_known(file, config)
        windows: list[list[int]] = []
        if recipe.calibrated is not None:
            if text is None:
                raise RequestError(f"expected a text to calibrate on, which {recipe.method} needs, got none; "
                                   "give one with --calib, or take a method without gptq and awq")  # fmt: skip
            tokenizer = Tokenizer.from_file(file)
            bos_id = tokenizer.bos_id if tokenizer.add_bos else None
            length = min(recipe.length, config.max_context)
            windows = calibrate.cut(tokenizer.encode(text, add_bos=False), recipe.windows, length, bos_id)
        return cls(source, target, recipe, config, plan(recipe, config), windows, threads)

    @property
    def folder(self) -> Path:
        """Where work in progress lies."""
        return work_folder(self.target)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the folder for this run: layers of two would mix.  Raises RequestError, FileError."""
        with ExitStack() as stack:
            with self._writable():
                stack.enter_context(lock.held(self.folder, str(self.target)))
            yield

    def prepare(self) -> None:
        """Empty the folder, or keep what lies there if it is of the same job.  Raises FileError."""
        stated = json.dumps(self._identity(), indent=1)
        with self._writable():
            if _text(self.folder / JOB) != stated:
                for path in self.folder.iterdir():
                    if path.name != lock.LOCK:
                        path.unlink()
                (self.folder / JOB).write_text(stated, encoding="utf-8")

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """Say in one line what the system has against the folder."""
        try:
            yield
        except OSError as error:
            raise refusal(self.target, "file", "a folder that can be written to", error.strerror or "an error",
                          "name another place") from None  # fmt: skip

    def _identity(self) -> dict[str, Any]:
        """Everything that decides the result."""
        tokens = hashlib.sha256(json.dumps(self.windows).encode()).hexdigest()
        return {"version": saved.VERSION, "lutra": __version__, "recipe": asdict(self.recipe), "tokens": tokens,
                "source": identity(self.source)}  # fmt: skip

    def once(self, name: str, make: Any) -> None:
        """Write one file of the folder, unless it is there already."""
        path = self.folder / name
        if not path.exists():
            tensors, notes = make()
            saved.write(path, notes, tensors)

    def layers(self) -> Iterator[Any]:
        """Yield what does each layer, in order."""
        work = {None: self._plain, ERROR_FEEDBACK: self._with_feedback}.get(self.recipe.calibrated, self._scaled)
        stream = None if self.recipe.calibrated is None else self._stream()
        left = [index for index in range(self.config.num_layers) if not self._part(index).exists()]
        for index in range(max(left, default=-1) + 1):  # what lies behind the last is done, and nobody waits for it
            yield partial(self._layer, index, work, stream)

    def _part(self, index: int) -> Path:
        """The file of a layer."""
        return self.folder / f"layer-{index:04}{SUFFIX}"

    def _layer(self, index: int, work: Any, stream: calibrate.Stream | None) -> None:
        """Do one layer, or, if it is done, take the calibration text through it."""
        path = self._part(index)
        layer = Layer(self, index, Reader(open_model(self.source), self.config, set()))  # pages read go with the file
        if not path.exists():
            work(layer, stream)
            errors, done = ({name: found[name] for name in sorted(found)} for found in (layer.errors, layer.done))
            saved.write(path, {"errors": errors}, done)  # in an order that threads do not decide
        elif stream is not None:
            if self.recipe.sequential:
                layer.take(path)
            stream.layer(layer)

    def _plain(self, layer: Layer, stream: None) -> None:
        """Every weight by itself."""
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(lambda name: layer.put(name, layer.base(name)), LINEARS))

    def _with_feedback(self, layer: Layer, stream: calibrate.Stream) -> None:
        recipe = self.recipe

        def seen(names: tuple[str, ...], inputs: calibrate.Inputs) -> None:
            if any(layer.format(name) for name in names):
                factor = Factor.of(inputs.hessian, recipe.damp, recipe.act_order)
                options = {"static_groups": recipe.static_groups}
                squares = np.diagonal(inputs.hessian)
                with ThreadPoolExecutor(self.threads) as pool:
                    list(pool.map(lambda name: layer.put(name, partial(_feedback, factor, options, layer.base(name)),
                                                         mean_squares=squares), names))  # fmt: skip
            else:
                for name in names:
                    layer.put(name, layer.base(name))

        stream.layer(layer, seen)

    def _scaled(self, layer: Layer, stream: calibrate.Stream) -> None:
        collected: dict[str, calibrate.Inputs] = {}
        stream.layer(layer, lambda names, inputs: collected.update(dict.fromkeys(names, inputs)))
        awq.scale_layer(layer, collected, clips="clip" in self.recipe.words())

    def _stream(self) -> calibrate.Stream:
        file = open_model(self.source)
        factors = file.tensors["rope_freqs"].read() if "rope_freqs" in file.tensors else None
        assert factors is None or isinstance(factors, np.ndarray)
        table = Reader(file, self.config, set()).matrix("embed", self.config.vocab_size, self.config.hidden_size)
        return calibrate.Stream(self.config, self.windows, partial(_rows, table),
                                rope_frequencies(self.config, factors))  # fmt: skip

    def outside(self) -> tuple[Tensors, dict[str, Any]]:
        """Everything that belongs to no layer, and the tokenizer."""
        file = open_model(self.source)
        reader = Reader(file, self.config, set())
        sizes = self.config.vocab_size, self.config.hidden_size
        tensors: Tensors = {"embed": reader.matrix("embed", *sizes)}
        tensors["final_norm"] = reader.vector("final_norm", self.config.hidden_size)
        if "rope_freqs" in file.tensors:
            tensors["rope_freqs"] = np.asarray(file.tensors["rope_freqs"].read())
        errors: dict[str, Any] = {}
        head = None if self.config.tied else reader.matrix("head", *sizes)
        wanted = self.formats.get("head")
        if wanted is not None:
            head, errors["head"] = _rounded_head(tensors["embed"] if head is None else head, wanted, self.recipe)
        if head is not None:
            tensors["head"] = head
        settings, texts = to_stored(file, Tokenizer.from_file(file))
        tensors |= {name: np.frombuffer(content, np.uint8) for name, content in texts.items()}
        return tensors, {"errors": errors, "tokenizer": settings}

    def finish(self, progress: Progress) -> None:
        """Join the parts to the target, and remove the folder."""
        notes = self._notes()
        config = replace(self.config, tied=self.config.tied and self.recipe.head is None)
        header = {"config": to_json(config), "tokenizer": notes[OUTSIDE]["tokenizer"],
                  "recipe": asdict(self.recipe), "errors": _errors(notes)}  # fmt: skip
        saved.join(self.target, header, [self.folder / name for name in notes], progress,
                   self.folder / JOINED)  # fmt: skip
        shutil.rmtree(self.folder, ignore_errors=True)

    def _notes(self) -> dict[str, dict[str, Any]]:
        names = [OUTSIDE, *(self._part(index).name for index in range(self.config.num_layers))]
        return {name: saved.open(self.folder / name).metadata for name in names}

    def summary(self) -> Summary:
        file = open_model(self.target)
        errors = file.metadata["errors"]
        rows: dict[str, tuple[str, int, int, float, float]] = {}
        for name, (signal, noise) in errors.items():
            tensor = file.tensors[name]
            n, k = tensor.shape
            rows[name] = (tensor.stored_type, saved.num_bytes(file, name), n * k, signal, noise)
        matrices = [f"layers.{index}.{part}" for index in range(self.config.num_layers) for part in LINEARS]
        matrices.append("head" if "head" in file.tensors else "embed")
        return Summary(self.target, self.target.stat().st_size, sum(saved.num_bytes(file, name) for name in matrices),
                       rows)  # fmt: skip


class Layer:
    """One layer: floats as they are read, and what has become of them.  A calibrate.LayerReader.

    done     tensors for the file, by full names        errors   {full name: [sum of squares, sum of squared errors]}
    """

    def __init__(self, job: Job, index: int, reader: Reader) -> None:
        self.job, self.prefix, self.reader = job, f"layers.{index}.", reader
        self.done: Tensors = {}
        self.errors: dict[str, list[float]] = {}
        for name in VECTORS:
            vector = self._stored_vector(name)
            if vector is not None:
                self.done[self.prefix + name] = vector

    def format(self, name: str) -> Format | None:
        """What a weight is to become, None for as stored."""
        return self.job.formats[self.prefix + name]

    def base(self, name: str) -> Quantise:
        """The data-free quantiser that finds scales for a weight."""
        form = self.format(name)
        return METHODS[method_for(form, self.job.recipe.base)].quantise if form else _unchanged

    def stored(self, name: str) -> Matrix:
        """A weight as the file has it."""
        return self.reader.matrix(self.prefix + name, *linear_shape(self.job.config, name))

    def matrix(self, name: str) -> np.ndarray:
        """A weight in f32: the quantised one if the job calibrates on these and there is one, else the stored one."""
        full = self.prefix + name
        if self.job.recipe.sequential and full in self.done:
            return widen(self.done[full])
        return widen(self.stored(name))

    def vector(self, name: str) -> np.ndarray | None:
        """A norm weight or a bias, None where the layer has none."""
        found = self.done.get(self.prefix + name)
        assert found is None or isinstance(found, np.ndarray)
        return found

    def put(
        self, name: str, quantise: Quantise, w: np.ndarray | None = None, mean_squares: np.ndarray | None = None
    ) -> None:
        """Quantise a weight, or keep it as stored where it has no format.

        w             f32 [N, K], if it is not the stored one any more
        mean_squares  float [K] of its inputs, where there is a calibration text: for the low-rank term
        """
        form, full = self.format(name), self.prefix + name
        if form is None:
            self.done[full] = self.stored(name) if w is None else w
            return
        w = widen(self.stored(name)) if w is None else w
        q: Matrix = quantise(w, form)
        if self.job.recipe.lorc:
            if not isinstance(q, QTensor):
                raise RequestError(f"expected a format of codes and scales for --lorc, got {form.name}; leave it out")
            q = low_rank(w, q, self.job.recipe.lorc, mean_squares)
        self.done[full] = q
        self.errors[full] = _squares(w, q)

    def take(self, path: Path) -> None:
        """Take the result of a layer that is done already."""
        self.done |= {name: tensor.read() for name, tensor in saved.open(path).tensors.items()}

    def _stored_vector(self, name: str) -> np.ndarray | None:
        tensor = self.reader.file.tensors.get(self.prefix + name)
        return None if tensor is None else self.reader.vector(self.prefix + name, tensor.shape[0])


def linear_shape(config: ModelConfig, name: str) -> tuple[int, int]:
    """(N, K) of a linear of a layer."""
    hidden, ffn = config.hidden_size, config.ffn_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries),
            "gate": (ffn, hidden), "up": (ffn, hidden), "down": (hidden, ffn)}[name]  # fmt: skip


def _feedback(
    factor: Factor, options: dict[str, bool], base: Quantise, w: np.ndarray, format: Format | VectorFormat
) -> QTensor | VectorWeight:
    if isinstance(format, VectorFormat):
        return vptq(w, format, factor)
    return gptq(w, factor, format, base, **options)


def _unchanged(w: np.ndarray, format: Format) -> QTensor:
    raise AssertionError("a weight that stays as stored has no quantiser")


def _rows(table: Matrix, tokens: np.ndarray) -> np.ndarray:
    """Rows of an embedding in f32, each made once."""
    unique, places = np.unique(tokens, return_inverse=True)
    rows = table[unique] if isinstance(table, np.ndarray) else _part(table, unique)
    return widen(rows)[places.reshape(-1)]


def _part(table: Matrix, index: Any) -> Matrix:
    if isinstance(table, (np.ndarray, QTensor)):
        return table.rows(index) if isinstance(table, QTensor) else table[index]
    return table.dequantize()[index]


def _rounded_head(head: Matrix, format: Format, recipe: Recipe) -> tuple[QTensor, list[float]]:
    """The head in its format, without calibration; some rows at a time."""
    method = METHODS[method_for(format, recipe.base)].quantise
    parts, errors = [], np.zeros(2)
    for start in range(0, head.shape[0], HEAD_ROWS):
        w = widen(_part(head, slice(start, start + HEAD_ROWS)))
        parts.append(method(w, format))
        errors += _squares(w, parts[-1])
    return QTensor.concat(parts), errors.tolist()


def _squares(w: np.ndarray, q: Any) -> list[float]:
    """Sums of squares of the weights and of the errors."""
    error = q.dequantize()
    error -= w
    return [float(np.einsum("nk,nk->n", x, x).sum(dtype=np.float64)) for x in (w, error)]


def _errors(notes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for note in notes.values() for name, value in note["errors"].items()}


def _text(path: Path) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")
    return None


def _check_known(file: ModelFile, config: ModelConfig) -> None:
    """Refuse a model with tensors that lutra does not compute.  Raises FileError."""
    names = {"embed", "head", "final_norm"}
    names |= {f"layers.{index}.{part}" for index in range(config.num_layers) for part in (*LINEARS, *VECTORS)}
    reader = Reader(file, config, names & file.tensors.keys())
    reader.check_all_used()
    missing = [name for name in names if name.rsplit(".", 1)[-1] in LINEARS and name not in file.tensors]
    if missing:
        raise FileError(f"{file.path}: expected a tensor for {sorted(missing)[0]}, found none; the file is incomplete")
