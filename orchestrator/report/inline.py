"""A figure as part of a page: SVG with tooltips on its marks. Equal figures give equal text."""

import io
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.report.drawing import STYLE

SVG = "http://www.w3.org/2000/svg"
HREF = "{http://www.w3.org/1999/xlink}href"
"""How Matplotlib writes a reference; the page has plain `href`, as browsers understand it since 2018."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
"""Characters that may be in a name but not in XML."""
REFERENCE = re.compile(r"url\(#(.*?)\)")


def say(line: Line2D, texts: Sequence[str]) -> None:
    """Set the tooltips of a line's marks, in their order."""
    line.says = tuple(texts)  # type: ignore[attr-defined]


def svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an `svg` element without styles of its own; ids that are referred to in it begin with the figure's name."""
    telling = [line for line in figure.findobj(Line2D) if getattr(line, "says", ())]
    for number, line in enumerate(telling):
        line.set_gid(f"says-{number}")
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):  # the salt of the ids is read when saving
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(CONTROL.sub("", buffer.getvalue().decode()))
    groups = {element.get("id"): element for element in root.iter(f"{{{SVG}}}g")}
    for number, line in enumerate(telling):
        _tell(groups[f"says-{number}"], line.says)  # type: ignore[attr-defined]
    for parent in list(root.iter()):
        parent.text, parent.tail = (parent.text or "").strip() or None, None
        for child in [child for child in parent if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style")]:
            parent.remove(child)
    _rename(root, name)
    root.attrib = {"viewBox": root.get("viewBox", ""), "role": "img", "aria-label": alt}
    ElementTree.register_namespace("", SVG)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _tell(group: ElementTree.Element, texts: Sequence[str]) -> None:
    """Give each mark of a line its tooltip. Their common style moves to the enclosing element, from which each mark inherits it."""
    for shape in group.iter(f"{{{SVG}}}path"):
        shape.attrib.pop("style", None)
    for around in group.iter():
        marks = [child for child in around if child.tag == f"{{{SVG}}}use"]
        if marks:
            around.set("style", marks[0].attrib.pop("style"))
            around.set("class", "says")
        for mark, text in zip(marks, texts, strict=True) if marks else ():
            mark.attrib = {HREF: mark.attrib[HREF], **{side: f"{float(mark.attrib[side]):.2f}" for side in "xy"}}
            ElementTree.SubElement(mark, f"{{{SVG}}}title").text = text


def _rename(root: ElementTree.Element, name: str) -> None:
    """Prefix ids that are referred to with the figure's name, so that two figures of a page share none; remove all other ids."""
    referred = [*(element.get(HREF, "")[1:] for element in root.iter())]
    referred += [known for element in root.iter() for value in element.attrib.values() for known in REFERENCE.findall(value)]
    short = {known: f"{name}-{number}" for number, known in enumerate(dict.fromkeys(filter(None, referred)))}
    for element in root.iter():
        if (old := element.attrib.pop("id", "")) in short:
            element.set("id", short[old])
        for key, value in list(element.attrib.items()):
            if key == HREF:
                element.attrib.pop(key)
                element.set("href", f"#{short[value[1:]]}")
            elif "url(#" in value:
                element.set(key, REFERENCE.sub(lambda match: f"url(#{short[match[1]]})", value))
