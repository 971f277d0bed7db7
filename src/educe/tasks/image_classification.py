"""Image classification: a picture, or each frame of a video, to its most probable classes."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from educe.model import Model
from educe.tasks.base import Findings, Item, Outputs, TaskOptions
from educe.tasks.pictures import PictureTask
from educe.tasks.scores import class_scores, ranked


class ImageClassification(PictureTask):
    """Pictures to classes."""

    name = "image-classification"
    default_batch = 8

    def __init__(self, model: Model, options: TaskOptions) -> None:
        super().__init__(model, options)
        self._output = self.tensor_output(self.card.scores.output)

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
        return [Findings(ranked(self.card, row, self.top_classes, self.options.threshold)) for row in scores]
