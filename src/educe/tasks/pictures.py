"""What all tasks on pictures share: frames in, one tensor out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image

from educe.media.frames import SUFFIXES, read_frames
from educe.media.image import ImageSource
from educe.model import Model
from educe.model.card import ImageInput
from educe.tasks.base import Feeds, Item, Task, TaskOptions
from educe.tasks.image_input import ImageTransform


class PictureTask(Task[Image.Image]):
    """Takes pictures, and videos frame by frame.

    A source is the path of a picture or video, the bytes of a picture, a Pillow image, or an array
    u8[height, width, 3] in RGB order.

    Attributes:
        image: The card's section ``[image]``.
    """

    suffixes = SUFFIXES
    takes_video = True

    def __init__(self, model: Model, options: TaskOptions) -> None:
        super().__init__(model, options)
        if self.card.image is None:
            raise self.card_error("the card has no [image] section", "say how a picture becomes the input")
        self.image: ImageInput = self.card.image
        self._input, kind = self.tensor_input(self.image.input)
        self._transform = ImageTransform(self.image, kind.numpy_dtype)

    def open(self, source: ImageSource) -> Iterator[Item[Image.Image]]:
        """Yield the picture in `source`, or the frames of the video."""
        for image, frame, time_seconds in read_frames(source, self.options.limits):
            yield Item(image, frame=frame, time_seconds=time_seconds)

    def preprocess(self, items: Sequence[Item[Image.Image]]) -> Feeds:
        """Return the input tensor of all pictures; each item remembers its ``placement`` in it."""
        tensor, placements = self._transform([item.content for item in items])
        for item, placement in zip(items, placements, strict=True):
            item.memory["placement"] = placement
        return {self._input: tensor}
