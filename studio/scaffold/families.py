"""The parts of the plugin template that differ by output type: the inputs, and the few lines that generate.

Each is a small generator without weights, meant to be replaced. In the stepped form the state holds `x`, a tensor that
each step moves towards `goal`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MediaTemplate:
    """`does`: the generator's docstring. `inputs`: lines of its Inputs. `goal`: lines that set `goal`, a float32 array,
    from `inputs` and `draw`. `media`: the expression for the output from `x`. `sample`: options for a sample command
    line; `suffix`: of the output file.
    """

    does: str
    output: str
    inputs: str
    goal: str
    media: str
    sample: str
    suffix: str


_SIZE = """size: int = studio.field(64, ge=16, le=512, multiple_of=2, help="width and height in pixels")"""
_RINGS = """\
        y, x = np.mgrid[-1 : 1 : inputs.size * 1j, -1 : 1 : inputs.size * 1j]
        phase = draw.uniform(0, 6.28, 3)
        goal = 0.5 + 0.5 * np.sin(inputs.rings * 6.28 * np.hypot(x, y)[..., None] + phase)  # (H, W, 3), from 0 to 1
"""

FAMILIES = {
    "image": MediaTemplate(
        does="Draw rings in random colours.",
        output="Image",
        inputs=f"""rings: int = studio.field(4, ge=1, le=50, help="how many rings")
        {_SIZE}""",
        goal=_RINGS,
        media="studio.Image.from_array((x * 255).round().clip(0, 255).astype(np.uint8))",
        sample="--rings 5",
        suffix=".png",
    ),
    "video": MediaTemplate(
        does="Draw moving rings in random colours.",
        output="Video",
        inputs=f"""rings: int = studio.field(4, ge=1, le=50, help="how many rings")
        frames: int = studio.field(16, ge=2, le=240, help="how many frames, 8 of them a second")
        {_SIZE}""",
        goal="""\
        time = np.linspace(0, 6.28, inputs.frames, endpoint=False)[:, None, None, None]
        y, x = np.mgrid[-1 : 1 : inputs.size * 1j, -1 : 1 : inputs.size * 1j]
        phase = draw.uniform(0, 6.28, 3)
        wave = inputs.rings * 6.28 * np.hypot(x, y)[..., None] + phase - time
        goal = 0.5 + 0.5 * np.sin(wave)  # (T, H, W, 3), from 0 to 1
""",
        media="studio.Video((x * 255).round().clip(0, 255).astype(np.uint8), fps=8)",
        sample="--rings 3 --frames 8",
        suffix=".mp4",
    ),
    "audio": MediaTemplate(
        does="Play a random chord.",
        output="Audio",
        inputs="""seconds: float = studio.field(1.0, ge=0.1, le=60, help="how long")
        notes: int = studio.field(3, ge=1, le=12, help="how many notes sound together")""",
        goal="""\
        time = np.arange(int(inputs.seconds * RATE)) / RATE
        pitches = 220.0 * 2 ** (draw.integers(0, 25, inputs.notes) / 12)  # Hz, of two octaves
        goal = 0.5 * np.sin(6.28 * pitches[:, None] * time).mean(axis=0, keepdims=True)  # (1, samples), -1 to 1
""",
        media="studio.Audio(x.astype(np.float32), RATE)",
        sample="--notes 4",
        suffix=".wav",
    ),
    "embedding": MediaTemplate(
        does="Embed text as a vector of letter frequencies.",
        output="Embedding",
        inputs="""text: str = studio.field(help="words", min_length=1, max_length=10_000)""",
        goal="""\
        letters = np.frombuffer(inputs.text.lower().encode(), np.uint8) % 32
        counts = np.bincount(letters, minlength=32) + 1e-3 * draw.random(32)
        goal = counts / np.linalg.norm(counts)  # (32,)
""",
        media="studio.Embedding(x.astype(np.float32))",
        sample='--text "a red apple"',
        suffix=".npy",
    ),
    "text": MediaTemplate(
        does="Write random pronounceable words.",
        output="Text",
        inputs="""words: int = studio.field(8, ge=1, le=1000, help="how many words to write")""",
        goal="""\
        goal = draw.integers(0, 100, (inputs.words, 3))  # (words, syllables)
""",
        media="""studio.Text(" ".join("".join(SYLLABLES[int(each) % 10] for each in word) for word in x.round()))""",
        sample="--words 5",
        suffix=".txt",
    ),
}
CONSTANTS = {
    "audio": "RATE = 16_000  # samples a second\n",
    "text": 'SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "ro", "su")\n',
}
