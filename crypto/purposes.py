"""What a signature may be for. A signature made for one purpose is worth nothing for another.

A new kind of signed thing gets a line here; ``SigningKey.sign`` refuses what is not listed.
"""

from __future__ import annotations

from typing import Final

HEADER: Final = "header"  # node key: a published version of a model, or presence
PRESENCE: Final = "presence"  # node key: that a member is at a broker, and for how long
CARD: Final = "card"  # member key: the member's own description of itself
CHARTER: Final = "charter"  # member key: a founder's consent to a charter
STATEMENT: Final = "statement"  # node or member key: what a member states about itself

PURPOSES: Final = frozenset({HEADER, PRESENCE, CARD, CHARTER, STATEMENT})
