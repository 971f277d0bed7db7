"""How right the zoo's models are, from raw files through ``educe predict --json``.

Without arguments it runs on the inputs of the zoo. Larger sets, which are not in the repository, are named:

    python -m benchmarks.accuracy --coco FOLDER --mnist FOLDER --commands FOLDER

`--coco` holds ``instances.json`` and ``images/``; `--mnist` the two ``t10k-*-ubyte.gz`` files of the test
set; `--commands` one folder of clips for each keyword, named after it.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gzip
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

ZOO = Path(__file__).parents[1] / "zoo"
# The scores are averaged over all of a curve, so almost every box counts.
COCO_THRESHOLD = 0.01


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coco", type=Path, help="a folder with instances.json and images/")
    parser.add_argument("--mnist", type=Path, help="a folder with the t10k-*-ubyte.gz files")
    parser.add_argument("--commands", type=Path, help="a folder of clips for each keyword")
    chosen = parser.parse_args(arguments)
    photos()
    signs()
    for name in ("yolox_nano", "fastestdet"):
        coco(name, chosen.coco or ZOO / "detection")
    faces()
    commands(chosen.commands)
    digits(chosen.mnist)
    speech()
    spam()
    patients()


def predict(*arguments: object) -> Iterator[dict[str, Any]]:
    """Yield the answers of one ``educe predict --json``."""
    command = [sys.executable, "-m", "educe", "predict", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return (json.loads(line) for line in done.stdout.splitlines())


def photos() -> None:
    """MobileNetV2 on the labelled photos; any of the listed ImageNet classes is right."""
    with (ZOO / "images" / "labels.csv").open() as file:
        labels = {
            row["file"]: {int(n) + 1 for n in row["imagenet_indices"].split(";")}
            for row in csv.DictReader(file)
        }
    answers = predict(ZOO / "mobilenet_v2", ZOO / "images", "--top", 1)
    right = [answer["predictions"][0]["index"] in labels[Path(answer["input"]).name] for answer in answers]
    report("MobileNetV2", "labelled photos, top-1", right)


def signs() -> None:
    """The traffic-sign network on drawn signs, whose file names begin with their class."""
    answers = predict(ZOO / "gtsrb", ZOO / "gtsrb" / "inputs", "--top", 1)
    report("GTSRB", "drawn traffic signs", [_is_named(answer) for answer in answers])


def coco(name: str, folder: Path) -> None:
    """Average precision over IoU .50 to .95, as pycocotools measures it."""
    truth = json.loads((folder / "instances.json").read_text())
    images = folder / "images" if (folder / "images").is_dir() else folder
    categories = sorted(category["id"] for category in truth["categories"])
    ids = {image["file_name"]: image["id"] for image in truth["images"]}
    answers = predict(ZOO / name, *(images / file for file in ids), "--threshold", COCO_THRESHOLD)
    found = [
        {
            "image_id": ids[Path(answer["input"]).name],
            "category_id": categories[prediction["index"]],
            "bbox": _corner_and_size(prediction["box"]),
            "score": prediction["score"],
        }
        for answer in answers
        for prediction in answer["predictions"]
    ]
    average, at_half = _precision(truth, found)
    print(f"{name:16} {f'COCO, {len(ids)} photos':28} AP {average:.3f}, AP50 {at_half:.3f}")


def faces() -> None:
    """The number of faces on each photo."""
    folder = ZOO / "face_detection"
    expected = {"faces_four.jpg": 4, "people2.jpeg": 2, "people3.jpeg": 3}
    found = {Path(a["input"]).name: len(a["predictions"]) for a in predict(folder, folder / "inputs")}
    report(
        "RFB-320", "photos with all faces found", [found[name] == count for name, count in expected.items()]
    )


def commands(folder: Path | None) -> None:
    """The keyword spotter on clips, labelled by their folder's or their own name."""
    answers = predict(ZOO / "kws", folder or ZOO / "kws" / "inputs", "--top", 1)
    right = []
    for answer in answers:
        path = Path(answer["input"])
        label = path.parent.name if folder else path.stem
        right.append(answer["predictions"][0]["label"].strip("_") == label.strip("_"))
    report("DS-CNN", "spoken commands", right)


def digits(folder: Path | None) -> None:
    """The MNIST network on the test set, written out as pictures, or on the zoo's drawn digits."""
    if folder is None:
        answers = predict(ZOO / "mnist", ZOO / "mnist" / "inputs", "--top", 1)
        report("MNIST", "drawn digits", [_is_named(answer) for answer in answers])
        return
    pictures = _idx(folder / "t10k-images-idx3-ubyte.gz", header_bytes=16)
    labels = _idx(folder / "t10k-labels-idx1-ubyte.gz", header_bytes=8)
    with tempfile.TemporaryDirectory() as scratch:
        for index, picture in enumerate(pictures.reshape(-1, 28, 28)):
            Image.fromarray(picture).save(Path(scratch) / f"{labels[index]}_{index:05}.png")
        report(
            "MNIST", "test set", [_is_named(answer) for answer in predict(ZOO / "mnist", scratch, "--top", 1)]
        )


def speech() -> None:
    """The segments that the voice detector finds in a recording."""
    for answer in predict(ZOO / "silero_vad", ZOO / "silero_vad" / "inputs"):
        spans = [f"{p['start_seconds']:.2f}-{p['end_seconds']:.2f}" for p in answer["predictions"]]
        print(f"{'Silero VAD':16} {Path(answer['input']).name:28} speech at {', '.join(spans)} s")


def spam() -> None:
    """The spam classifier on the zoo's comments."""
    folder = ZOO / "comment_spam"
    expected = json.loads((folder / "expected.json").read_text())
    answers = predict(folder, folder / "inputs" / "comments.txt", "--top", 1)
    labels = [case["label"] for case in expected["cases"]]
    report("comment spam", "comments", [a["predictions"][0]["label"] == labels[a["row"]] for a in answers])


def patients() -> None:
    """The boosted trees' probabilities against those that LightGBM gave."""
    folder = ZOO / "breast_cancer"
    expected = json.loads((folder / "expected.json").read_text())["benign_probability"]
    answers = predict(folder, folder / "inputs" / "patients.csv")
    found = [next(p["score"] for p in a["predictions"] if p["label"] == "benign") for a in answers]
    worst = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    print(f"{'breast cancer':16} {f'{len(found)} rows':28} largest difference from LightGBM {worst:.1e}")


def report(model: str, what: str, right: list[bool]) -> None:
    """Print how many are right."""
    print(f"{model:16} {what:28} {sum(right)} of {len(right)} ({sum(right) / len(right):.2%})")


def _idx(path: Path, header_bytes: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header_bytes)


def _is_named(answer: dict[str, Any]) -> bool:
    return answer["predictions"][0]["index"] == int(Path(answer["input"]).stem.split("_")[0])


def _corner_and_size(box: list[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _precision(truth: dict[str, Any], found: list[dict[str, Any]]) -> tuple[float, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO()
        annotations.dataset = truth
        annotations.createIndex()
        evaluation = COCOeval(annotations, annotations.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


if __name__ == "__main__":
    main()
