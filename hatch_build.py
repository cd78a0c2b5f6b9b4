"""The README as a package index shows it.

Links to files of the checkout lead nowhere there, so they become plain text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE_LINK = re.compile(r"\[([^\]\n]+)\]\((?!https?://)[^)\n]+\)")


class ReadmeHook(MetadataHookInterface):
    """Gives the metadata a README without relative links."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the README."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": RELATIVE_LINK.sub(r"`\1`", text)}
