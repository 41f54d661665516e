from studio_pixel_pipeline import PixelPipeline

import studio.testing


class TestPixelPipeline(studio.testing.Conformance):
    generator = PixelPipeline()
    inputs = {"steps": 2, "eta": 1.0}  # noqa: RUF012
