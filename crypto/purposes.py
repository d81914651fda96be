"""What a signature may be for. One made for one purpose never verifies for another."""

from __future__ import annotations

from typing import Final

HEADER: Final = "header"  # a published version, or presence
STATEMENT: Final = "statement"  # by a member about itself, such as a ballot
CARD: Final = "card"  # a member's card
CHARTER: Final = "charter"  # the founding document

PURPOSES: Final = frozenset({HEADER, STATEMENT, CARD, CHARTER})
