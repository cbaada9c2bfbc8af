"""Pages that carry their data along: ``page.html`` of a package, filled."""

import json
from importlib import resources
from typing import Any


def fill_template(package: str, data: dict[str, Any]) -> str:
    """The page around `data`: pure ASCII, in which no string of the data can end the script element.

    Parameters
    ----------
    package : whose ``page.html`` is the template, such as ``infer.report``
    """
    before, after = resources.files(package).joinpath("page.html").read_text("ascii").split("@DATA@")
    return before + to_json(data) + after


def to_json(value: Any) -> str:
    """JSON for a script element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII: U+2028 and the like are escaped
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")
