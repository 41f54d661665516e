import PIL.Image
from studio_contact_sheet import ContactSheet

import studio
import studio.testing


class TestContactSheet(studio.testing.Conformance):
    generator = ContactSheet()


def test_pictures_stand_in_rows():
    pictures = [studio.Image(PIL.Image.new("RGB", (10, 5), colour)) for colour in ("red", "lime", "blue")]
    inputs = ContactSheet.Inputs.parse({"images": pictures, "columns": 2, "side": 8})
    sheet = ContactSheet().generate(None, inputs, studio.Rng(0)).pil
    assert sheet.size == (16, 16)
    assert [sheet.getpixel(at) for at in ((4, 4), (12, 4), (4, 12), (12, 12))] == [
        (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255),
    ]  # fmt: skip
