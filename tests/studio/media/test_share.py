"""Copies to share have the content and the label, and nothing else."""

from __future__ import annotations

import io

import av
import PIL.Image
import PIL.PngImagePlugin
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import studio
from studio.errors import MediaError
from studio.media.label import TRAINED, Label
from studio.media.share import shared
from studio.recipe import PluginRef, Recipe
from studio.spec import JobSpec
from tests.studio.media.test_label import FORMATS, media


def with_recipe(made):
    spec = JobSpec(generator="draw", inputs={"prompt": "a secret 秘密"}, seed=3)
    recipe = Recipe(spec=spec, plugin=PluginRef(name="p", version="1"), kind=made.kind, output=made.ref)
    return made.attach(recipe, None)


def packets(file):
    with av.open(io.BytesIO(file)) as container:
        return [(bytes(each), each.pts, each.dts) for each in container.demux() if each.size]


@pytest.mark.parametrize(
    ("name", "label"), [*((name, Label()) for name in FORMATS), *((name, None) for name in ("a.png", "v.mp4", "s.wav"))]
)
def test_the_recipe_goes_and_content_and_label_stay(name, label, tmp_path):
    made = with_recipe(media(name)).labelled(label)
    made.save(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    after, found = shared(before)
    old, new = type(made).decode(before), type(made).decode(after)
    assert new == old
    assert new.recipe is None
    assert new.label == found == old.label == (label.of(made.sha256) if label else None)
    assert not any(word in after for word in (b"secret", b"schema_version", "秘密".encode(), rb"\u79d8", b"parameters"))
    if name.endswith((".mp4", ".flac", ".mp3", ".ogg", ".opus")):
        assert packets(after) == packets(before), "streams are copied"


def test_metadata_of_a_picture_go_but_not_how_it_looks():
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("Author", "Ann")
    info.add_itxt("XML:com.adobe.xmp", Label(TRAINED, "x", "1").xmp().replace("<rdf:RDF", "<!-- Ann --><rdf:RDF"))
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "Ann"
    packet = Label(TRAINED, "x", "1").xmp().replace("<rdf:RDF", "<!-- Ann --><rdf:RDF").encode()
    jpeg = {"xmp": packet, "comment": b"Ann", "progressive": True}
    for form, more in (("PNG", {"pnginfo": info}), ("WEBP", {"lossless": True, "xmp": packet}), ("JPEG", jpeg)):
        buffer = io.BytesIO()
        PIL.Image.radial_gradient("L").convert("RGB").crop((0, 0, 40, 20)).save(buffer, form, exif=exif, **more)
        made, label = shared(buffer.getvalue())
        assert label == Label(TRAINED, "x", "1")
        assert b"Ann" not in made
        assert b"Ann" in buffer.getvalue()
        opened = studio.Image.decode(made)
        assert opened == studio.Image.decode(buffer.getvalue())
        assert opened.size == (20, 40), "it is still turned"
        assert opened.label == label


def test_a_video_keeps_its_sound():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as target:
        target.metadata["title"] = "Ann"
        video, sound = target.add_stream("libx264", rate=12), target.add_stream("aac", rate=48_000)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        for frame in media("v.mp4").frames:
            target.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        silence = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        silence.sample_rate = 48_000
        for plane in silence.planes:
            plane.update(bytes(plane.buffer_size))
        target.mux(sound.encode(silence))
        for stream in (video, sound):
            target.mux(stream.encode())
    made, label = shared(buffer.getvalue())
    assert label is None
    assert b"Ann" not in made
    assert sorted(packets(made)) == sorted(packets(buffer.getvalue()))


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"hello", "not in a format that Studio writes"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "the JPEG is truncated or damaged"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "the JPEG is truncated or damaged"),
        (b"BM" + bytes(60), "not in a format that Studio writes"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"GIF89a", "truncated"),
        (b"RIFF\xff\0\0\0WAVE", "truncated"),
        (b"fLaC" + bytes(50), "truncated or damaged"),
        (bytes(4) + b"ftypisom" + bytes(50), "truncated or damaged"),
    ],
)
def test_what_cannot_be_shared_says_why(file, reason):
    with pytest.raises(MediaError, match=reason):
        shared(file)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["a.png", "a.avif", "v.webp", "v.gif", "s.wav", "a.jpg"]), data=st.data())
def test_a_damaged_file_is_an_error_or_a_copy(name, data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    if name == "a.jpg" and not (folder / name).exists():
        media("a.png").pil.save(folder / name, xmp=Label().of("0" * 64).xmp().encode(), comment="a secret")
    if not (folder / name).exists():
        with_recipe(media(name)).labelled(Label()).save(folder / name)
    file = bytearray((folder / name).read_bytes())
    file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        made, _ = shared(bytes(file[: data.draw(st.integers(1, len(file)))]))
    except MediaError:
        return
    assert b"secret" not in made


def test_a_jpeg_s_thumbnail_and_what_hides_in_its_segments_go():
    buffer = io.BytesIO()
    PIL.Image.radial_gradient("L").convert("CMYK").save(buffer, "JPEG")
    file = buffer.getvalue()

    def segment(kind, body):
        return b"\xff" + kind + (len(body) + 2).to_bytes(2, "big") + body

    thumbnail = segment(b"\xe0", b"JFIF\0\1\2\0\0\1\0\1\1\1Ann")
    hidden = thumbnail + segment(b"\xfe", b"Adobe Ann") + segment(b"\xe2", b"MPF\0Ann") + segment(b"\xed", b"Ann")
    made, label = shared(file[:2] + hidden + b"\xff\xff" + file[2:] + b"Ann")
    assert label is None
    assert b"Ann" not in made
    assert studio.Image.decode(made) == studio.Image.decode(file)
