"""Styles of layers, as QGIS (QML) and map servers (SLD) read them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape, quoteattr

# Red, green, blue.
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Style(ABC):
    """How a layer is drawn.

    Attributes:
        name: name of the style.
        description: one sentence for the user.
    """

    name: str
    description: str

    def qml(self) -> str:
        """Return the style for QGIS 3."""
        return (
            "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
            f'<qgis version="3.22" styleCategories="Symbology">\n{self._renderer()}</qgis>\n'
        )

    def sld(self, layer: str) -> str:
        """Return the style as OGC Styled Layer Descriptor 1.0."""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<StyledLayerDescriptor version="1.0.0" xmlns="http://www.opengis.net/sld" '
            'xmlns:ogc="http://www.opengis.net/ogc">\n'
            f"<NamedLayer><Name>{escape(layer)}</Name><UserStyle><Title>{escape(self.name)}</Title>"
            f"<FeatureTypeStyle>\n{self._rules()}</FeatureTypeStyle></UserStyle></NamedLayer>\n"
            "</StyledLayerDescriptor>\n"
        )

    @abstractmethod
    def _renderer(self) -> str:
        """Return QGIS's renderer."""

    @abstractmethod
    def _rules(self) -> str:
        """Return the rules of the SLD."""


@dataclass(frozen=True)
class LinesByValue(Style):
    """Lines coloured by classes of a number.

    Attributes:
        attribute: the number.
        unit: its unit.
        limits: limits between the classes, ascending, one fewer than classes.
        classes: colour and width in millimetres of each class, lowest first.
    """

    attribute: str
    unit: str
    limits: Sequence[float]
    classes: Sequence[tuple[Colour, float]]

    def _ranges(self) -> list[tuple[float, float, str]]:
        """Return the limits and the label of each class."""
        ranges = []
        ends = [0.0, *self.limits, 1000.0]
        for low, high in pairwise(ends):
            label = f"{low:g} to {high:g} {self.unit}"
            if high == ends[-1]:
                label = f"{low:g} {self.unit} and more"
            ranges.append((low, high, label))
        return ranges

    def _renderer(self) -> str:
        ranges = "".join(
            f'<range lower="{low:.6f}" upper="{high:.6f}" symbol="{number}" '
            f'label={quoteattr(label)} render="true"/>\n'
            for number, (low, high, label) in enumerate(self._ranges())
        )
        symbols = "".join(
            _qml_symbol(
                number, "line", "SimpleLine",
                {"line_color": _qml_colour(colour), "line_width": f"{width:g}",
                 "line_width_unit": "MM", "capstyle": "round", "joinstyle": "round"},
            )
            for number, (colour, width) in enumerate(self.classes)
        )  # fmt: skip
        return (
            f'<renderer-v2 type="graduatedSymbol" attr={quoteattr(self.attribute)} '
            'graduatedMethod="GraduatedColor" symbollevels="0" enableorderby="0" forceraster="0">\n'
            f"<ranges>\n{ranges}</ranges>\n<symbols>\n{symbols}</symbols>\n</renderer-v2>\n"
        )

    def _rules(self) -> str:
        rules = ""
        name = f"<ogc:PropertyName>{escape(self.attribute)}</ogc:PropertyName>"
        for (low, high, label), (colour, width) in zip(self._ranges(), self.classes, strict=True):
            rules += (
                f"<Rule><Title>{escape(label)}</Title><ogc:Filter><ogc:And>"
                f"<ogc:PropertyIsGreaterThanOrEqualTo>{name}<ogc:Literal>{low:g}</ogc:Literal>"
                "</ogc:PropertyIsGreaterThanOrEqualTo>"
                f"<ogc:PropertyIsLessThan>{name}<ogc:Literal>{high:g}</ogc:Literal>"
                "</ogc:PropertyIsLessThan></ogc:And></ogc:Filter><LineSymbolizer><Stroke>"
                f'<CssParameter name="stroke">{_hex(colour)}</CssParameter>'
                # An SLD counts in pixels, of 0.28 mm each.
                f'<CssParameter name="stroke-width">{width / 0.28:.1f}</CssParameter>'
                "</Stroke></LineSymbolizer></Rule>\n"
            )
        return rules


@dataclass(frozen=True)
class Areas(Style):
    """Areas with a half transparent filling and an outline.

    Attributes:
        colour: of both.
    """

    colour: Colour

    def _renderer(self) -> str:
        symbol = _qml_symbol(
            0, "fill", "SimpleFill",
            {"color": _qml_colour(self.colour, 90), "style": "solid",
             "outline_color": _qml_colour(self.colour), "outline_style": "solid",
             "outline_width": "0.4", "outline_width_unit": "MM", "joinstyle": "round"},
        )  # fmt: skip
        return (
            '<renderer-v2 type="singleSymbol" symbollevels="0" enableorderby="0" forceraster="0">\n'
            f"<symbols>\n{symbol}</symbols>\n</renderer-v2>\n"
        )

    def _rules(self) -> str:
        colour = _hex(self.colour)
        return (
            f"<Rule><Title>{escape(self.name)}</Title><PolygonSymbolizer><Fill>"
            f'<CssParameter name="fill">{colour}</CssParameter>'
            '<CssParameter name="fill-opacity">0.35</CssParameter></Fill><Stroke>'
            f'<CssParameter name="stroke">{colour}</CssParameter>'
            '<CssParameter name="stroke-width">1.4</CssParameter></Stroke></PolygonSymbolizer>'
            "</Rule>\n"
        )


def _qml_symbol(number: int, kind: str, layer: str, options: dict[str, str]) -> str:
    # QGIS before 3.22 reads <prop>, later versions <Option>.
    new = "".join(f'<Option name="{k}" type="QString" value="{v}"/>' for k, v in options.items())
    old = "".join(f'<prop k="{k}" v="{v}"/>' for k, v in options.items())
    return (
        f'<symbol name="{number}" type="{kind}" alpha="1" clip_to_extent="1" force_rhr="0">'
        f'<layer class="{layer}" enabled="1" pass="0" locked="0">'
        f'<Option type="Map">{new}</Option>{old}</layer></symbol>\n'
    )


def _qml_colour(colour: Colour, alpha: int = 255) -> str:
    return ",".join(map(str, (*colour, alpha)))


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


#: Roads from slow and blue to fast and red, as in satmap's pictures.
ROADS_BY_SPEED = LinesByValue(
    "roads by speed", "Speeds of roads, estimated by satmap.", "speed_kmh", "km/h",
    (30, 40, 50, 65, 85),
    (((48, 90, 220), 0.5), ((30, 170, 230), 0.6), ((60, 200, 90), 0.7), ((225, 205, 50), 0.8),
     ((245, 125, 30), 1.0), ((210, 40, 20), 1.2)),
)  # fmt: skip

BUILDINGS = Areas("buildings", "Building footprints, found by satmap.", (230, 90, 20))
