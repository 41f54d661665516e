"""The AI label: what a file says about having been made by a model, for people, platforms and law.

Two statements, in an XMP packet: IPTC's `DigitalSourceType` (IPTC Photo Metadata 2025.1), and the field `AIGC` of
GB 45438-2025, annex E, which some containers also have as metadata of their own (TC260-PG-20257A for videos,
TC260-PG-202510A for sound). Equal labels give equal bytes. Packets of other programs are read too; they are untrusted:
a packet with a DTD or with more than 1 MiB has no label.

Try it: ``python -c "import studio; print(studio.Image.open('a.png').label)"``
"""

from __future__ import annotations

import json
import re
import xml.parsers.expat
from collections import defaultdict
from dataclasses import dataclass, replace
from html import escape
from typing import Literal

Source = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", ""]
TRAINED: Source = "trainedAlgorithmicMedia"
COMPOSITE: Source = "compositeWithTrainedAlgorithmicMedia"
PRODUCER = "multimodal-studio"
AIGC = "AIGC"
SOURCE_TYPE = "DigitalSourceType"
XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")  # of an XMP box in MP4 (XMP specification, part 3)
MAX_PACKET_BYTES = 1 << 20
_CODES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_TC260 = "http://www.tc260.org.cn/ns/AIGC/1.0/"
_NOT_XML = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_OWN_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Label:
    """The label of media made by AI.

    Attributes:
        source: IPTC's code: `trainedAlgorithmicMedia` if a model made all of it, `compositeWithTrainedAlgorithmicMedia`
            if other media took part; empty if a file of another program does not say.
        producer: the name or code of who made it (GB 45438's `ContentProducer`); empty if a file does not say.
        id: the producer's number of the content (`ProduceID`); Studio's is the media's sha256.
    """

    source: Source = TRAINED
    producer: str = PRODUCER
    id: str = ""

    def of(self, sha256: str) -> Label:
        """The label with an id: its own, else the hash of the content."""
        return self if self.id or not self.producer else replace(self, id=sha256)

    @property
    def is_own(self) -> bool:
        """Whether the id is a hash, as Studio's are."""
        return bool(_OWN_ID.fullmatch(self.id))

    @property
    def source_uri(self) -> str:
        """The code as IPTC's URI, or an empty text."""
        return f"{_CODES}{self.source}" if self.source else ""

    def aigc(self) -> str:
        """The JSON of the field `AIGC`; empty without a producer. `1` means: made by AI. The propagator's fields are
        left to whoever publishes the file.
        """
        if not self.producer:
            return ""
        names = ("Label", "ContentProducer", "ProduceID", "ReservedCode1", "ContentPropagator", "PropagateID",
                 "ReservedCode2")  # fmt: skip
        values = ("1", self.producer, self.id, "", "", "", "")
        return json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False, separators=(",", ":"))

    def tags(self) -> dict[str, str]:
        """The label as tags, for containers that have no XMP."""
        found = {AIGC: self.aigc(), SOURCE_TYPE: self.source_uri}
        return {name: text for name, text in found.items() if text}

    def xmp(self) -> str:
        """The XMP packet with the label."""
        source, aigc = escape(self.source_uri, quote=False), escape(self.aigc(), quote=False)
        properties = f"<Iptc4xmpExt:{SOURCE_TYPE}>{source}</Iptc4xmpExt:{SOURCE_TYPE}>" if source else ""
        properties += f"<TC260:{AIGC}>{aigc}</TC260:{AIGC}>" if aigc else ""
        return (
            '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
            f'<rdf:RDF xmlns:rdf="{_RDF}"><rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{_IPTC}" '
            f'xmlns:TC260="{_TC260}">{properties}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
        )


def is_labelled(file: bytes) -> bool:
    """Whether the bytes have a label as Studio writes it, without decoding the file."""
    return b'"ContentProducer":' in file or _CODES.encode() in file


def of_xmp(packet: bytes | str) -> Label | None:
    """The label in an XMP packet, or None; also None if it is not a packet."""
    data = packet.encode("utf-8", "replace") if isinstance(packet, str) else bytes(packet)
    if not data or len(data) > MAX_PACKET_BYTES:
        return None
    try:
        found = _properties(data.strip(b"\0 \t\r\n"))
    except (xml.parsers.expat.ExpatError, _HasDtd, ValueError):
        return None
    return of_tags(found[f"{_TC260} {AIGC}"], found[f"{_IPTC} {SOURCE_TYPE}"])


def of_tags(aigc: str, source_uri: str) -> Label | None:
    """The label that a field `AIGC` and a digital source type say, or None if they do not say that it is by AI."""
    code = source_uri.strip().rpartition("/")[2]
    source: Source = TRAINED if code == TRAINED else COMPOSITE if code == COMPOSITE else ""
    try:
        fields = json.loads(aigc) if aigc else {}
    except (ValueError, RecursionError):
        fields = {}
    if isinstance(fields, dict) and isinstance(fields.get(AIGC), dict):  # some programs wrap it
        fields = fields[AIGC]
    if not isinstance(fields, dict) or str(fields.get("Label")) != "1":
        return Label(source, "") if source else None
    return Label(source, _text(fields.get("ContentProducer")), _text(fields.get("ProduceID")))


class _HasDtd(Exception):
    """The packet declares entities."""


def _properties(data: bytes) -> defaultdict[str, str]:
    """The properties of the packet: the attributes and the text of its elements, by namespace and name."""
    found: defaultdict[str, str] = defaultdict(str)
    path: list[str] = []

    def refuse(*_: object) -> None:
        raise _HasDtd

    def start(name: str, attributes: dict[str, str]) -> None:
        path.append(name)
        found.update(attributes)
        if resource := attributes.get(f"{_RDF} resource"):
            found[name] = resource

    def text(more: str) -> None:
        if path:
            found[path[-1]] += more

    parser = xml.parsers.expat.ParserCreate(namespace_separator=" ")
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: path.pop()
    parser.CharacterDataHandler = text
    parser.Parse(data, True)
    return found


def _text(value: object) -> str:
    """A text of a label, without control characters, which XML cannot hold."""
    return _NOT_XML.sub("", str(value or ""))[:200]
