"""The model card: what a model is for, how raw input becomes its tensors, how its tensors become answers.

A card is part of the model: wrong preprocessing gives wrong answers silently. `docs/cards.md` describes
every field with an example; here each section is a `msgspec.Struct` whose fields are the format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

TaskName = Literal[
    "image-classification",
    "object-detection",
    "face-detection",
    "audio-classification",
    "voice-activity-detection",
    "text-classification",
    "file-type",
    "tabular-classification",
    "tabular-regression",
    "tensor",
]
Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
SpectrumSize = Annotated[int, Meta(ge=2, le=2**16)]
MelSize = Annotated[int, Meta(ge=1, le=1024)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Seconds = Annotated[float, Meta(ge=0.0)]
Activation = Literal["none", "softmax", "sigmoid"]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The base of all sections: immutable, and no unknown field passes."""


class ImageInput(Section, frozen=True):
    """``[image]``: how a picture becomes the input tensor.

    A pixel value p in 0..255 becomes ``(range[0] + p / 255 * (range[1] - range[0]) - mean) / std``;
    `mean` and `std` have one number, or one per channel in the order of `color`.

    Attributes:
        size: Width and height of the tensor.
        input: Name of the graph input; the first one that is not a state or a constant if absent.
        color: Order of the channels.
        layout: Order of the dimensions.
        fit: `stretch` ignores the aspect ratio; `crop` scales until `shorter_side` fits and cuts out the
            centre; `letterbox` scales until all fits and fills the rest with `fill`.
        shorter_side: For `crop`: the shorter side after scaling; the larger number of `size` if absent.
        anchor: For `letterbox`: where the picture stands.
        fill: For `letterbox`: the pixel value around the picture.
        filter: The resampling filter, by its Pillow name.
        antialias: Widen the filter when a picture shrinks, as Pillow does and OpenCV does not.
            Only `bilinear` and `nearest` can go without.
    """

    size: tuple[Positive, Positive]
    input: str | None = None
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"
    fit: Literal["stretch", "crop", "letterbox"] = "stretch"
    shorter_side: Positive | None = None
    anchor: Literal["center", "top-left"] = "center"
    fill: Annotated[int, Meta(ge=0, le=255)] = 114
    filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    antialias: bool = True
    range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class SpectrumInput(Section, frozen=True):
    """``[audio.spectrum]``: how a waveform becomes a log-mel spectrogram or MFCCs.

    Attributes:
        kind: `log-mel` gives `mel_bins` values a frame, `mfcc` the first `coefficients` of their DCT-II, each
            of them times ``sqrt(2 / mel_bins)``.
        frame_samples: Length of a frame.
        hop_samples: Distance between frames.
        fft_size: Length of the transform; the frame is padded with zeros behind.
        window: The window function, periodic.
        power: 1 for magnitudes, 2 for power.
        mel_bins: Number of mel filters.
        low_hz: Lower edge of the first filter.
        high_hz: Upper edge of the last filter; half the sample rate if absent.
        mel_scale: The formula from hertz to mel.
        mel_triangles: Whether the sides of a filter are straight over hertz or over mel.
        mel_norm: `slaney` divides each filter by half its width in hertz.
        log: The logarithm taken of the mel energies; `db` is 10 ``log10`` of power, 20 of magnitudes.
        log_floor: Added to the energies before the logarithm.
        coefficients: For `mfcc`: how many coefficients are kept.
    """

    kind: Literal["log-mel", "mfcc"]
    frame_samples: SpectrumSize
    hop_samples: Positive
    fft_size: SpectrumSize
    window: Literal["hann", "hamming", "rectangular"] = "hann"
    power: Literal[1, 2] = 1
    mel_bins: MelSize = 40
    low_hz: Annotated[float, Meta(ge=0.0)] = 20.0
    high_hz: Annotated[float, Meta(gt=0.0)] | None = None
    mel_scale: Literal["htk", "slaney"] = "htk"
    mel_triangles: Literal["hertz", "mel"] = "hertz"
    mel_norm: Literal["none", "slaney"] = "none"
    log: Literal["ln", "log10", "db"] = "ln"
    log_floor: Annotated[float, Meta(ge=1e-30)] = 1e-6
    coefficients: MelSize = 13


class AudioInput(Section, frozen=True):
    """``[audio]``: how a sound becomes the input tensor.

    Attributes:
        sample_rate: In hertz; sounds of other rates are resampled, several channels are averaged.
        window_samples: Samples that one run of the model sees; a shorter sound is padded with zeros.
        hop_samples: Distance between runs on a longer sound; `window_samples` if absent. The scores of all
            runs are averaged.
        context_samples: Samples of the past put before each window (voice activity).
        normalize: `peak` divides the sound by its largest sample, the sign counting: -0.9 is less than 0.1.
        spectrum: How the waveform becomes features; the waveform itself, in -1..1, if absent.
        input: Name of the graph input.
    """

    sample_rate: Positive
    window_samples: Positive
    hop_samples: Positive | None = None
    context_samples: NotNegative = 0
    normalize: Literal["none", "peak"] = "none"
    spectrum: SpectrumInput | None = None
    input: str | None = None


class TextInput(Section, frozen=True):
    """``[text]``: how a text becomes token ids.

    Attributes:
        max_length: Most tokens the model takes.
        tokenizer: A Hugging Face `tokenizer.json`, beside the card.
        too_long: What happens to a text of more tokens: refused, or cut (`truncate`).
        pad: Pad to the longest text of the batch, or always to `max_length`.
        unit: Whether a file holds one text, or one in each line.
        ids: Name of the input of token ids.
        mask: Name of the attention mask, if the model takes one.
        types: Name of the segment ids, if the model takes them.
    """

    max_length: Positive
    tokenizer: str = "tokenizer.json"
    too_long: Literal["error", "truncate"] = "error"
    pad: Literal["longest", "max_length"] = "longest"
    unit: Literal["file", "line"] = "file"
    ids: str = "input_ids"
    mask: str | None = None
    types: str | None = None


class FileInput(Section, frozen=True):
    """``[file]``: how a file's bytes become the input tensor of a file-type model (Magika).

    The first `begin` bytes of the left-stripped first `block` bytes, then the last `end` bytes of the
    right-stripped last `block` bytes, padded with `padding`.

    Attributes:
        min_bytes: A shorter file is not shown to the model: it is text or unknown.
        score_threshold: A lower score gives a generic answer.
        thresholds: Other thresholds, by label.
        rename: Labels that are answered by another name.
        text_labels: The labels of text files: below its threshold such an answer becomes ``txt``, any other
            ``unknown``.
    """

    begin: Positive = 1024
    end: Positive = 1024
    block: Positive = 4096
    padding: NotNegative = 256
    min_bytes: NotNegative = 8
    score_threshold: Fraction = 0.5
    thresholds: dict[str, Fraction] = {}
    rename: dict[str, str] = {}
    text_labels: tuple[str, ...] = ()
    input: str | None = None


class TableInput(Section, frozen=True):
    """``[table]``: how named columns become the input tensors.

    Attributes:
        columns: The columns the model was trained on, in its order.
        input: The graph input that takes all columns as one [rows, columns] matrix. If absent and the model
            has an input for each column, each gets its own as [rows, 1].
        categories: For a column of words that the model takes as numbers: the words, in code order.
        missing: What an empty cell means: an error, or NaN.
    """

    columns: tuple[str, ...]
    input: str | None = None
    categories: dict[str, tuple[str, ...]] = {}
    missing: Literal["error", "nan"] = "error"


class ScoresOutput(Section, frozen=True):
    """``[scores]``: how an output becomes class scores.

    Attributes:
        output: Name of the graph output; the first one if absent.
        activation: What turns it into probabilities: `none` if it holds them already.
    """

    output: str | None = None
    activation: Activation = "none"


class AnchorGrid(Section, frozen=True):
    """``[boxes.anchors]``: the prior boxes of an SSD, one entry of each list for a feature map.

    Anchors are centred in the cells of each map, as in Liu et al., SSD (2016): for each cell first one box
    of ``scales[k]`` for each aspect ratio, then (with `extra_scale`) one of aspect 1 and scale
    ``sqrt(scales[k] * scales[k + 1])``.

    Attributes:
        maps: Width and height of each feature map.
        scales: Scale of each map's anchors as a share of the picture; with `extra_scale` one more.
        aspect_ratios: Width over height, for each map.
        extra_scale: Whether the extra square anchor exists.
        variances: Divisors of the encoded centre and size.
    """

    maps: tuple[tuple[Positive, Positive], ...]
    scales: tuple[float, ...]
    aspect_ratios: tuple[tuple[float, ...], ...]
    extra_scale: bool = True
    variances: tuple[float, float] = (0.1, 0.2)


class BoxesOutput(Section, frozen=True):
    """``[boxes]``: how outputs become boxes.

    Attributes:
        decoder: The layout of the outputs; `docs/cards.md` has the formula of each.
        boxes: Name of the output with the boxes; the first one if absent.
        scores: Name of the output with the scores, for the decoders that have two outputs.
        activation: What turns the scores of `ssd` and `ultraface` into probabilities.
        strides: For `yolox`: the strides of the feature maps.
        anchors: For `ssd`: the prior boxes.
        background: For `ssd` and `ultraface`: whether class 0 is the background, which is then left out.
        score_threshold: Boxes below are dropped, unless the caller asks otherwise.
        iou_threshold: Of two boxes of one class that overlap more, the lower score is dropped.
        nms: False if the model has already dropped overlapping boxes.
        max_boxes: Most boxes in one answer.
        multi_label: Whether one box may be answered once for each of several classes, rather than for its
            best class alone.
        clip: Whether boxes are cut off at the edge of the picture.
    """

    decoder: Literal["yolox", "yolov5", "yolov8", "fastestdet", "ssd", "ultraface"]
    boxes: str | None = None
    scores: str | None = None
    activation: Activation = "none"
    strides: tuple[Positive, ...] = (8, 16, 32)
    anchors: AnchorGrid | None = None
    background: bool = True
    score_threshold: Fraction = 0.25
    iou_threshold: Fraction = 0.45
    nms: bool = True
    max_boxes: Positive = 300
    multi_label: bool = False
    clip: bool = True


class VoiceOutput(Section, frozen=True):
    """``[voice]``: how speech probabilities become segments.

    Attributes:
        score_threshold: A segment begins where the probability reaches it, and ends where it stays
            `hysteresis` below.
        hysteresis: See above.
        min_speech_seconds: Shorter segments are dropped.
        min_silence_seconds: Shorter pauses do not end a segment.
        padding_seconds: Added at both ends of a segment.
    """

    score_threshold: Fraction = 0.5
    hysteresis: Fraction = 0.15
    min_speech_seconds: Seconds = 0.25
    min_silence_seconds: Seconds = 0.1
    padding_seconds: Seconds = 0.03


class Card(Section, frozen=True):
    """A model's card.

    Attributes:
        task: What the model is for.
        name: The model's name for people.
        model: The file this card belongs to, if its folder holds several models.
        license: SPDX identifier.
        source: Where the model comes from.
        labels: The class names in index order, or the name of a file beside the card with one a line.
        state: For a recurrent model: each state input, with the output that feeds it next time.
        constants: Values for inputs that are always the same, such as a sample rate.
    """

    task: TaskName
    name: str | None = None
    model: str | None = None
    license: str | None = None
    source: str | None = None
    labels: tuple[str, ...] | str = ()
    image: ImageInput | None = None
    audio: AudioInput | None = None
    text: TextInput | None = None
    file: FileInput | None = None
    table: TableInput | None = None
    scores: ScoresOutput = ScoresOutput()
    boxes: BoxesOutput | None = None
    voice: VoiceOutput = VoiceOutput()
    state: dict[str, str] = {}
    constants: dict[str, bool | int | float] = {}

    def label(self, index: int) -> str:
        """Return the name of class `index`, or ``class 7`` where the card has none."""
        if isinstance(self.labels, tuple) and 0 <= index < len(self.labels):
            return self.labels[index]
        return f"class {index}"


class CardOrigin(msgspec.Struct, frozen=True):
    """Where a card came from.

    Attributes:
        source: For people and programs: a file's name, ``metadata (ultralytics)``, ``preset imagenet``, …
        guessed: Whether the card was guessed from the signature.
        folder: Where the files that the card names are, if it may name any.
    """

    source: str
    guessed: bool = False
    folder: Path | None = None


TENSOR_CARD = Card(task="tensor")
