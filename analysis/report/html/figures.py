"""A figure inside the page: the SVG that matplotlib wrote, as elements that the page's own style can reach.

The policy of the page allows no style but that of its head, so every style of an element becomes attributes;
``figures.css`` gives the colours of the page's theme to elements by the colours in these attributes. Text is drawn as
outlines; what a reader of the page is told of a figure is its description and the notes of its marks, each of which is
an image inside a group: an image as a whole would hide them.
"""

import hashlib
import re
from xml.etree import ElementTree

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
DROPPED = {"metadata", "style"}
PLACED = ("d", "x", "y", "width", "height")  # attributes in points, or in the smaller units of a letter
FINE = re.compile(r"-?\d+\.\d{3,}")
NOTE = "data-note"


class Figures:
    """The figures of one page, which share what they have in common: outlines of letters and markers."""

    def __init__(self) -> None:
        self._shared: set[str] = set()

    def inline(self, content: bytes, name: str, description: str) -> str:
        """Return the HTML of a figure; ``name`` is its identifier, and keeps those inside apart from other figures'.

        Raises ValueError unless ``content`` is an SVG.
        """
        try:
            root = ElementTree.fromstring(content)
        except ElementTree.ParseError as error:
            raise ValueError(f"not an SVG: {error}") from None
        if root.tag != f"{SVG}svg":
            raise ValueError("not an SVG")
        self._simplify(root, _names(root, name))
        root.attrib.pop("height", None)
        marks = [element for element in root.iter() if NOTE in element.attrib]
        root.attrib |= {"id": name, "class": "figure", "role": "group" if marks else "img", "aria-label": description}
        root.attrib["stroke-linejoin"] = "round"
        _describe(marks)
        return ElementTree.tostring(root, encoding="unicode")

    def _simplify(self, element: ElementTree.Element, names: dict[str, str]) -> None:
        """Turn styles into attributes, rename identifiers, and drop what the page does not need or has already."""
        element.tag = element.tag.removeprefix(SVG)
        element.attrib |= _attributes(element, names)
        element.text = (element.text or "").strip() or None
        element.tail = None
        children = list(element)
        for child in children:
            self._simplify(child, names)
        element[:] = [kept for child in children for kept in self._kept(child)]

    def _kept(self, element: ElementTree.Element) -> list[ElementTree.Element]:
        """Return what stays of an element: nothing of one that is dropped, the children of a bare group."""
        name = element.get("id", "")
        if element.tag in DROPPED or name in self._shared or (element.tag == "defs" and not len(element)):
            return []
        if name.startswith("shared-"):
            self._shared.add(name)
        return list(element) if element.tag == "g" and not element.attrib else [element]


def _names(root: ElementTree.Element, figure: str) -> dict[str, str]:
    """Return the new name of each identifier that elements refer to, by a link or by ``fill: url(#h1)``.

    That of an outline follows from its content.
    """
    values = [value for element in root.iter() for value in element.attrib.values()]
    referred = {value[1:] for value in values if value.startswith("#")}
    referred |= {part.partition(")")[0] for value in values for part in value.split("url(#")[1:]}
    return {name: _name(element, figure) for element in root.iter() if (name := element.get("id", "")) in referred}


def _name(element: ElementTree.Element, figure: str) -> str:
    if element.tag != f"{SVG}path":
        return f"{figure}-{element.get('id')}"
    content = repr(sorted((key, value) for key, value in element.attrib.items() if key != "id"))
    return f"shared-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _attributes(element: ElementTree.Element, names: dict[str, str]) -> dict[str, str]:
    """Take the attributes from an element and return those that the page shows."""
    found: dict[str, str] = {}
    for name, value in element.attrib.items():
        if name == "style":
            pairs = (pair.split(":", 1) for pair in value.split(";") if ":" in pair)
            found |= {key.strip(): setting.strip() for key, setting in pairs}
        elif name != "id":
            found[name.removeprefix(XLINK)] = " ".join(value.split())
        elif value in names:
            found["id"] = names[value]
    element.attrib.clear()
    return {name: _value(name, value, names) for name, value in sorted(found.items())}


def _value(name: str, value: str, names: dict[str, str]) -> str:
    if name in PLACED:
        return _coarse(value)
    if name == "transform":
        return re.sub(r"translate\([^)]*\)", lambda match: _coarse(match[0]), value)
    if name == "href" and value[1:] in names:
        return f"#{names[value[1:]]}"
    return re.sub(r"url\(#([^)]*)\)", lambda match: f"url(#{names[match[1]]})", value)


def _coarse(value: str) -> str:
    """Round places to hundredths, a tenth of what a screen shows."""
    return FINE.sub(lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), value)


def _describe(marks: list[ElementTree.Element]) -> None:
    """Have a screen reader read the note of each mark once, though a mark may be of several elements."""
    known: set[str] = set()
    for mark in marks:
        number = mark.attrib[NOTE]
        mark.attrib |= {"aria-hidden": "true"} if number in known else {"role": "img"}
        known.add(number)
