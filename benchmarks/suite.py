"""The engines side by side on public architectures with random weights, and on models of the zoo.

python -m benchmarks.suite --engines native,onnxruntime,openvino --threads 1,2 --only resnet50,mlp

The first engine is measured against the others. Each model and number of threads has a process of its own, in
which the engines take turns; before they are timed, their answers must be those of ONNX Runtime to 1e-4. The
others are given models with all sizes written in, which is to their advantage; the first takes them as they
are. The time to the first answer is that of a fresh process for each engine, once without and once with
compiled code kept from before; memory is that of the second.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from benchmarks.architectures import ARCHITECTURES, stored
from educe import api, engines
from educe.bench.cold import Request, measure_cold
from educe.bench.feeds import random_feeds, with_sizes_of
from educe.bench.measure import Measurement, measure
from educe.bench.peaks import Machine, Peaks, machine, measure_peaks
from educe.limits import format_bytes
from educe.settings import CACHE

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "out" / "benchmarks"
JUDGE = "onnxruntime"
TOLERANCE = 1e-4
BEGIN, END = "<!-- suite: begin -->", "<!-- suite: end -->"


@dataclass(frozen=True)
class Row:
    """What is run: a model, which may appear with several sizes.

    Attributes:
        model: An architecture, or a folder of the zoo.
        batch: Items of a run.
        sizes: Sizes of other named dimensions.
    """

    name: str
    model: str
    batch: int = 1
    sizes: Mapping[str, int] = field(default_factory=dict)

    def path(self) -> Path:
        """Return the model's file, which is made if need be."""
        if self.model in ARCHITECTURES:
            return stored(self.model, MODELS)
        return ROOT / "zoo" / self.model / "model.onnx"


ROWS = (
    Row("ResNet-50", "resnet50"),
    Row("VGG-16", "vgg16"),
    Row("MobileNetV2", "mobilenet_v2"),
    Row("EfficientNet-B0", "efficientnet_b0"),
    Row("SqueezeNet 1.1", "squeezenet1_1"),
    Row("U-Net", "unet"),
    Row("BERT-base, 128 tokens", "bert_base", sizes={"sequence": 128}),
    Row("MiniLM-L6, 32 tokens", "minilm_l6", sizes={"sequence": 32}),
    Row("MiniLM-L6, 128 tokens", "minilm_l6", sizes={"sequence": 128}),
    Row("ViT-S/16", "vit_s16"),
    Row("LSTM, 100 steps", "lstm", sizes={"steps": 100}),
    Row("MLP", "mlp"),
    Row("MLP, 64 rows", "mlp", batch=64),
    Row("ranker, 64 rows", "ranker", batch=64),
    Row("YOLOX-nano (zoo)", "yolox_nano"),
    Row("FastestDet (zoo)", "fastestdet"),
    Row("RFB-320 (zoo)", "face_detection"),
    Row("GTSRB (zoo)", "gtsrb"),
    Row("Silero VAD (zoo)", "silero_vad"),
    Row("Magika (zoo)", "magika"),
)


class Cell(msgspec.Struct, frozen=True, omit_defaults=True):
    """One engine on one row."""

    row: str
    threads: int
    engine: str
    error: str | None = None
    difference: float | None = None
    runs: int = 0
    min_seconds: float = math.nan
    median_seconds: float = math.nan
    peak_memory_bytes: int | None = None
    start_seconds: float | None = None
    warm_seconds: float | None = None


class Report(msgspec.Struct, frozen=True):
    """Everything that a run of the suite found."""

    machine: Machine
    peaks: list[Peaks]
    engines: dict[str, str | None]
    seconds: float
    cells: list[Cell]


def main() -> None:
    """Run what the command line asks for."""
    given = _arguments()
    names, threads = given.engines.split(","), [int(count) for count in given.threads.split(",")]
    chosen = given.only.split(",") if given.only else None
    rows = [row for row in ROWS if chosen is None or row.model in chosen]
    cells: list[Cell] = []
    for count in threads:
        for row in rows:
            found = [*_cells(row, names, count, given.seconds, given.starts)]
            cells += found
            print(_line(found), flush=True)
        print(f"{count} threads: {_summary([cell for cell in cells if cell.threads == count])}\n")
    report = Report(
        machine(),
        [measure_peaks(count) for count in threads],
        {name: engines.get(name).version() for name in names},
        given.seconds,
        cells,
    )
    if given.json:
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    if given.markdown:
        _write_between_marks(given.markdown, markdown(report))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.suite", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--engines", default="native,onnxruntime,openvino", help="the first is measured")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--only", help=f"models: {', '.join(dict.fromkeys(row.model for row in ROWS))}")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each engine")
    parser.add_argument("--starts", action=argparse.BooleanOptionalAction, default=True, help="cold starts")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--markdown", type=Path, help=f"write tables into this file, after {BEGIN}")
    return parser.parse_args()


# Measuring


def _cells(row: Row, names: Sequence[str], threads: int, seconds: float, starts: bool) -> Iterator[Cell]:
    path = row.path()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found: list[Measurement]
        try:
            found = pool.submit(measure_row, row, path, names, threads, seconds).result()
        except BrokenProcessPool as fault:
            found = [Measurement(name, name, error=f"{type(fault).__name__}: {fault}") for name in names]
    for each in found:
        cell = Cell(row.name, threads, each.name, each.error, each.difference, each.runs)
        if each.error is None:
            assert each.min_seconds is not None
            assert each.median_seconds is not None
            times = {"min_seconds": each.min_seconds, "median_seconds": each.median_seconds}
            cell = msgspec.structs.replace(cell, **times)
        if starts and each.error is None:
            fixed, options = each.name != names[0], {"threads": threads}
            request = Request(str(path), each.name, row.batch, dict(row.sizes), fixed, options)
            cell = msgspec.structs.replace(cell, **_starts(request))
        yield cell


def _starts(request: Request) -> dict[str, float | int]:
    """Return what two starts take: without and with compiled code from before."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE.variable] = folder
        try:
            cold, warm = measure_cold(request), measure_cold(request)
        finally:
            del os.environ[CACHE.variable]
    if cold is None or warm is None:
        return {}
    return {
        "start_seconds": cold.start_seconds,
        "warm_seconds": warm.start_seconds,
        "peak_memory_bytes": warm.growth_bytes,
    }


def measure_row(
    row: Row, path: Path, names: Sequence[str], threads: int, seconds: float
) -> list[Measurement]:
    """Time the engines on one row, in turns; the answers of `JUDGE` count as right."""
    model = api.load(path)
    feeds = random_feeds(model, row.batch, sizes=row.sizes)
    fixed = with_sizes_of(model, feeds)
    executables, refusals = {}, []
    judge_first = sorted(names, key=lambda name: (name != JUDGE, name == names[0]))
    for name in judge_first:
        try:
            given = model if name == names[0] else fixed
            executable = engines.compile(given, name, threads=threads)
            executable.run(feeds)
        except Exception as fault:
            refusals.append(Measurement(name, name, error=f"{type(fault).__name__}: {fault}"))
        else:
            executables[name] = executable
    found = measure(executables, feeds, batch=row.batch, seconds=seconds, tolerance=TOLERANCE)
    return sorted([*found, *refusals], key=lambda each: names.index(each.name))


# Reporting


def ratio(cells: Sequence[Cell], figure: str = "median_seconds") -> float:
    """Return the time of the best of the others over that of the first engine; NaN if either has none."""
    ours, *others = cells
    times = [getattr(cell, figure) for cell in others if cell.error is None]
    return min(times) / getattr(ours, figure) if times else math.nan


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean."""
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else math.nan


def _by_row(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.row, []).append(cell)
    return rows


def _summary(cells: Sequence[Cell]) -> str:
    rows = _by_row(cells)
    found = {name: value for name, each in rows.items() if math.isfinite(value := ratio(each))}
    if not found:
        return "nothing could be compared"
    fastest = sum(value >= 1 for value in found.values())
    least = min(found, key=lambda name: found[name])
    mean = geometric_mean(list(found.values()))
    return (
        f"geometric mean of the ratios {mean:.2f}; fastest on {fastest} of {len(rows)}; "
        f"least {found[least]:.2f} ({least})"
    )


def _line(cells: Sequence[Cell]) -> str:
    parts = [f"{cells[0].row:24} {cells[0].threads} threads"]
    for cell in cells:
        parts.append(f"{cell.engine} {cell.error or _milliseconds(cell.median_seconds)}")
    return "  ".join([*parts, f"ratio {ratio(cells):.2f} (min {ratio(cells, 'min_seconds'):.2f})"])


def markdown(report: Report) -> str:
    """Return the tables of a report: for each number of threads, a row for each model."""
    facts = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in report.engines.items())
    lines = [f"{facts.cpu}, {facts.cores} cores, {facts.system}, Python {facts.python}; {versions}."]
    names = list(report.engines)
    for peaks in report.peaks:
        cells = [cell for cell in report.cells if cell.threads == peaks.threads]
        lines += ["", f"### {peaks.threads} {'thread' if peaks.threads == 1 else 'threads'}", ""]
        lines += [
            f"This machine reaches {peaks.fma_gflops:.0f} GFLOP/s of f32 and reads "
            f"{peaks.read_gigabytes_per_second:.0f} GB/s. In all: {_summary(cells)}.",
            "",
            f"| model | {' | '.join([*names, 'ratio', 'ratio of minima', 'memory', *_STARTS])} |",
            f"|---|{'---:|' * (len(names) + 5)}",
        ]
        lines += [_table_row(each) for each in _by_row(cells).values()]
        failures = [f"- {cell.row}: {cell.engine} fails: {cell.error}" for cell in cells if cell.error]
        lines += ["", *failures] if failures else []
    return "\n".join(lines)


_STARTS = ("cold start, s", "warm start, s")


def _table_row(cells: Sequence[Cell]) -> str:
    times = ["fails" if cell.error else _milliseconds(cell.median_seconds) for cell in cells]
    memory = [format_bytes(cell.peak_memory_bytes) if cell.peak_memory_bytes else "" for cell in cells]
    starts = [f"{cell.start_seconds:.2f}" if cell.start_seconds else "" for cell in cells]
    warm = [f"{cell.warm_seconds:.2f}" if cell.warm_seconds else "" for cell in cells]
    ratios = [f"{ratio(cells):.2f}", f"{ratio(cells, 'min_seconds'):.2f}"]
    joined = [" / ".join(each) for each in (memory, starts, warm)]
    return f"| {' | '.join([cells[0].row, *times, *ratios, *joined])} |"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds * 1e3:.0f} ms"


def _write_between_marks(path: Path, text: str) -> None:
    whole = path.read_text(encoding="utf-8")
    between = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not between.search(whole):
        raise SystemExit(f"{path} has no line {BEGIN} before a line {END}")
    path.write_text(between.sub(lambda _: f"{BEGIN}\n\n{text}\n\n{END}", whole), encoding="utf-8")


if __name__ == "__main__":
    main()
