"""Image classification: a picture, or each frame of a video, to its most probable classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image

from educe.media.frames import SUFFIXES, read_frames
from educe.media.image import ImageSource
from educe.model import Model
from educe.tasks.base import Feeds, Findings, Item, Outputs, Task, TaskOptions
from educe.tasks.image_input import ImageTransform
from educe.tasks.scores import class_scores, ranked

DEFAULT_TOP = 5


class ImageClassification(Task[Image.Image]):
    """Pictures to classes.

    A source is the path of a picture or video, the bytes of a picture, a Pillow image, or an array
    u8[height, width, 3] in RGB order.
    """

    name = "image-classification"
    suffixes = SUFFIXES
    takes_video = True
    default_batch = 8

    def __init__(self, model: Model, options: TaskOptions) -> None:
        super().__init__(model, options)
        if self.card.image is None:
            raise self.card_error("the card has no [image] section", "say how a picture becomes the input")
        self._input, kind = self.tensor_input(self.card.image.input)
        self._output = self.tensor_output(self.card.scores.output)
        self._transform = ImageTransform(self.card.image, kind.numpy_dtype)

    def open(self, source: ImageSource) -> Iterator[Item[Image.Image]]:
        """Yield the picture in `source`, or the frames of the video."""
        for image, frame, time_seconds in read_frames(source, self.options.limits):
            yield Item(image, frame=frame, time_seconds=time_seconds)

    def preprocess(self, items: Sequence[Item[Image.Image]]) -> Feeds:
        """Return the input tensor of all pictures."""
        tensor, _ = self._transform([item.content for item in items])
        return {self._input: tensor}

    def postprocess(self, outputs: Outputs, items: Sequence[Item[Image.Image]]) -> list[Findings]:
        """Return the best classes of each picture.

        Raises:
            CardError: the output does not hold scores for each picture.
            EngineError: a score is not finite.
        """
        output = outputs[self._output]
        if output.ndim < 2 or len(output) != len(items) or not output.size:
            raise self.card_error(
                f"the output {self._output!r} is {list(output.shape)}, not [{len(items)}, classes]",
                "name another output in [scores]",
            )
        scores = class_scores(output, self.card.scores.activation)
        top = self.options.top or DEFAULT_TOP
        return [Findings(ranked(self.card, row, top, self.options.threshold)) for row in scores]
