"""The AI label: in XMP and tags and back, in every format, and read by programs that Studio did not write."""

from __future__ import annotations

import io
import json
import shutil
import subprocess

import av
import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

import studio
from studio.media.label import COMPOSITE, MAX_PACKET_BYTES, TRAINED, Label, is_labelled, of_tags, of_xmp
from studio.media.png import read_text

CODES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
FORMATS = ["a.png", "a.avif", "v.mp4", "v.webp", "v.gif", "v.png", "v.avif", "s.wav", "s.flac", "s.mp3", "s.ogg",
           "s.opus"]  # fmt: skip
TEXTS = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=30)


def media(name):
    rng = np.random.default_rng(0)
    if name[0] == "a":
        return studio.Image.from_array(rng.integers(0, 255, (16, 16, 3), np.uint8))
    if name[0] == "v":
        return studio.Video(rng.integers(0, 255, (4, 4, 4, 3), np.uint8).repeat(16, 1).repeat(16, 2), 12)
    return studio.Audio(rng.uniform(-1, 1, (2, 2400)), 48_000)


@given(source=st.sampled_from([TRAINED, COMPOSITE]), producer=TEXTS, number=TEXTS)
def test_a_label_comes_back_from_xmp_and_from_tags(source, producer, number):
    label = Label(source, producer, number)
    tags = label.tags()
    assert of_xmp(label.xmp()) == of_xmp(label.xmp().encode() + b"\n  \0") == label
    assert of_tags(tags["AIGC"], tags["DigitalSourceType"]) == label
    assert label.xmp() == Label(source, producer, number).xmp()


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_what_is_no_packet_has_no_label(packet):
    assert of_xmp(packet) is None
    assert of_tags(packet if isinstance(packet, str) else "", "") is None


def test_a_packet_with_entities_or_of_over_a_mebibyte_is_not_read():
    packet = Label().of("0" * 64).xmp()
    declared = packet.replace("<x:xmpmeta", '<!DOCTYPE a [<!ENTITY b "1">]><x:xmpmeta', 1)
    assert of_xmp(packet) is not None
    assert of_xmp(declared) is None
    assert of_xmp(packet + " " * MAX_PACKET_BYTES) is None


@pytest.mark.parametrize("form", ["attribute", "resource", "element"])
def test_packets_of_other_programs_are_read(form):
    namespace = 'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    inside = {
        "attribute": (f'Iptc4xmpExt:DigitalSourceType="{CODES}{TRAINED}"', ""),
        "resource": ("", f'<Iptc4xmpExt:DigitalSourceType rdf:resource="{CODES}{TRAINED}"/>'),
        "element": ("", f"<Iptc4xmpExt:DigitalSourceType>\n{CODES}{TRAINED} </Iptc4xmpExt:DigitalSourceType>"),
    }[form]
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f"<rdf:Description {namespace} {inside[0]}>{inside[1]}</rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    assert of_xmp(packet) == Label(TRAINED, "")
    assert of_xmp(packet.replace(TRAINED, "digitalCapture")) is None


@pytest.mark.parametrize(
    ("aigc", "label"),
    [
        ('{"Label": 1, "ContentProducer": "x", "ProduceID": "7"}', Label("", "x", "7")),
        ('{"AIGC": {"Label": "1", "ContentProducer": "x"}}', Label("", "x", "")),
        ('{"Label": "2", "ContentProducer": "x"}', None),
        ('{"Label": "1", "ContentProducer": "a\\u0007b", "ProduceID": ["c"]}', Label("", "ab", "['c']")),
        ("[1]", None),
        ("[" * 100_000, None),
    ],
)
def test_the_field_of_other_programs_is_read(aigc, label):
    assert of_tags(aigc, "") == label
    if label:
        assert of_xmp(label.xmp()) == label


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_the_label_and_the_same_content_and_bytes(name, tmp_path):
    plain = media(name)
    marked = plain.labelled(Label(COMPOSITE))
    one, two, bare = (tmp_path / f"{each}-{name}" for each in ("one", "two", "bare"))
    for path, each in ((one, marked), (two, marked), (bare, plain)):
        each.save(path)
    assert one.read_bytes() == two.read_bytes()
    opened, without = type(plain).open(one), type(plain).open(bare)
    assert opened.label == marked.label == Label(COMPOSITE, "multimodal-studio", plain.sha256)
    assert without.label is None
    assert opened == without
    assert (is_labelled(one.read_bytes()), is_labelled(bare.read_bytes())) == (True, False)
    assert marked == plain


@pytest.mark.parametrize("name", ["a.png", "v.mp4", "s.wav"])
def test_the_identity_in_a_stored_file_does_not_depend_on_the_label(name):
    plain = media(name)
    marked = plain.labelled(Label())
    assert marked.file_bytes() != plain.file_bytes()
    for file in (plain.file_bytes(), marked.file_bytes()):
        assert type(plain).identify(file) == plain.sha256
        assert plain.matches(file)
        assert marked.matches(file)
    opened = type(plain).decode(marked.file_bytes())
    assert opened.data == plain.data
    assert opened.file_bytes() == marked.file_bytes(), "a label stays when the file is saved again"


def test_a_video_of_another_program_keeps_its_file_and_its_label():
    from studio.media import clips

    theirs = clips.remux(media("v.mp4").data, "", Label(TRAINED, "another", "42"))
    opened = studio.Video.decode(theirs)
    assert opened.label == Label(TRAINED, "another", "42")
    assert opened.file_bytes() == opened.data == theirs
    assert studio.Video.identify(theirs) == opened.sha256


def test_pillow_and_ffmpeg_read_the_label(tmp_path):
    media("a.png").labelled(Label()).save(tmp_path / "a.png")
    with PIL.Image.open(tmp_path / "a.png") as image:
        assert CODES + TRAINED in image.info["XML:com.adobe.xmp"]
    for name, where in (("v.mp4", "container"), ("s.flac", "container"), ("s.mp3", "container"), ("s.ogg", "stream")):
        made = media(name).labelled(Label())
        made.save(tmp_path / name)
        with av.open(str(tmp_path / name)) as container:
            tags = (container if where == "container" else container.streams.audio[0]).metadata
            assert json.loads(tags["AIGC"]) == {
                "Label": "1", "ContentProducer": "multimodal-studio", "ProduceID": made.sha256, "ReservedCode1": "",
                "ContentPropagator": "", "PropagateID": "", "ReservedCode2": "",
            }  # fmt: skip


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="needs exiftool")
def test_exiftool_reads_the_label_without_a_warning(tmp_path):
    for name in FORMATS:
        media(name).labelled(Label(COMPOSITE)).save(tmp_path / name)
    names = ["-DigitalSourceType", "-AIGC", "-UserDefinedText", "-Warning", "-Error"]
    ran = subprocess.run(
        ["exiftool", "-json", "-a", "-G4", *names, *FORMATS], cwd=tmp_path, capture_output=True, check=True
    )
    for found in json.loads(ran.stdout):
        text = json.dumps(found)
        assert COMPOSITE in text, found
        assert "multimodal-studio" in text, found
        assert not any(name.endswith(("Warning", "Error")) for name in found), found


def test_a_damaged_packet_is_told_and_read_past():
    from studio.media.png import with_text

    plain = media("a.png")
    file = bytearray(with_text(plain.data, {"XML:com.adobe.xmp": Label().xmp()}))
    file[file.find(b"rdf:RDF")] ^= 1
    opened = studio.Image.decode(bytes(file))
    assert opened == plain
    assert opened.label is None
    assert any("XMP metadata was ignored" in each for each in opened.notices)


def test_a_jpeg_s_label_is_read():
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(buffer, "JPEG", xmp=Label(TRAINED, "x", "1").xmp().encode())
    assert studio.Image.decode(buffer.getvalue()).label == Label(TRAINED, "x", "1")
    assert studio.Image.decode_isolated(buffer.getvalue()).label == Label(TRAINED, "x", "1")


def test_text_has_no_label():
    text = studio.Text("hello")
    assert text.labelled(Label()) is text
    assert text.label is None


def test_the_packet_stands_where_the_xmp_specification_says():
    made = media("a.png").labelled(Label())
    assert read_text(made.file_bytes(), "XML:com.adobe.xmp") == made.label.xmp()
    assert made.label.xmp().startswith('<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>')


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_the_server_s_formats_have_the_label(form):
    from studio.server.pictures import encoded

    made = media("a.png").labelled(Label())
    assert studio.Image.decode(encoded(made, form, 90)).label == made.label
    assert studio.Image.decode(encoded(media("a.png"), form, 90)).label is None
