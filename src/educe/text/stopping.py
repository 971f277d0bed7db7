"""Stop strings: text is released as soon as it cannot become one, and cut at the first that is complete."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """What one stream of text still holds back for the sake of its stop strings.

    The first stop is the one that is complete first; of those that end with the same character, the longest.
    So the answer does not depend on how the text is cut into tokens.

    Attributes:
        found: The stop string that has ended the text; None before.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops)
        self.found: str | None = None
        self._stops = tuple(stops)
        self._borders = [_borders(stop) for stop in self._stops]
        # Of each stop: how many of its first characters the text so far ends with.
        self._matched = [0] * len(self._stops)
        self._held = ""

    def push(self, text: str) -> str:
        """Take the next piece of the text, and return what may be shown of it and of what was held.

        After a stop is found, nothing more is returned.
        """
        if self.found is not None:
            return ""
        text, before = self._held + text, len(self._held)
        for position in range(before, len(text)):
            if stop := self._advance(text[position]):
                self.found, self._held = stop, ""
                return text[: position + 1 - len(stop)]
        released = len(text) - max(self._matched, default=0)
        self._held = text[released:]
        return text[:released]

    def finish(self) -> str:
        """Return what is still held: the text has ended without a stop."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str:
        """Take a character (Knuth, Morris and Pratt, 1977); return the longest stop that it ends, if any."""
        longest = ""
        for index, stop in enumerate(self._stops):
            matched = self._matched[index]
            while matched and stop[matched] != character:
                matched = self._borders[index][matched - 1]
            matched += stop[matched] == character
            if matched == len(stop):
                longest = max(longest, stop, key=len)
                matched = self._borders[index][-1]
            self._matched[index] = matched
        return longest


def _borders(stop: str) -> list[int]:
    """Return, of each prefix of `stop`, the length of the longest proper prefix that is also its end."""
    borders, matched = [0], 0
    for character in stop[1:]:
        while matched and stop[matched] != character:
            matched = borders[matched - 1]
        matched += stop[matched] == character
        borders.append(matched)
    return borders
