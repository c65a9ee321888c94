"""Make the font that the pictures are drawn with: Noto Serif CJK TC, cut down to what poems need.

apt-get download fonts-noto-cjk && dpkg -x fonts-noto-cjk_*.deb noto
python examples/poetry/common/fonts/make.py noto/usr/share/fonts/opentype/noto/NotoSerifCJK-Regular.ttc

That is Debian's package; fontTools comes with matplotlib. The font has the characters of the pretrained model, in
traditional and simplified form, those of pingshui.txt and variants.txt, those that come twice or more in the Tang
corpus, which is downloaded, and what a keyboard has, Chinese marks and Japanese kana. Hints and layout tables are left
out. The same input gives the same bytes.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

POETRY = Path(__file__).parents[2]
sys.path.insert(0, str(POETRY))

from common.cli import PRETRAINED  # noqa: E402
from common.lettering import FAMILY, SHIPPED  # noqa: E402
from corpus import tang  # noqa: E402
from model import load_model  # noqa: E402
from verse import request  # noqa: E402

TAIWAN = 3  # the font within the collection
MARKS = [
    *range(0x20, 0x7F),
    *range(0xA1, 0x100),
    *range(0x2010, 0x2028),
    *range(0x3000, 0x3100),
    *range(0xFF01, 0xFF5F),
]
POSTSCRIPT = FAMILY.replace(" ", "")
NAMES = {1: FAMILY, 3: f"2.001;{POSTSCRIPT}", 4: FAMILY, 6: POSTSCRIPT}  # by OpenType's number


def main() -> None:
    font = TTFont(sys.argv[1], fontNumber=TAIWAN, recalcTimestamp=False)
    options = subset.Options(hinting=False, layout_features=[], name_IDs=["*"], notdef_outline=True)
    options.drop_tables += ["BASE", "GPOS", "GSUB", "VORG", "vhea", "vmtx"]
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=wanted())
    cutter.subset(font)
    for record in font["name"].names:
        if record.nameID in NAMES:
            record.string = NAMES[record.nameID]
    font.save(SHIPPED)
    print(f"{SHIPPED}: {len(font.getBestCmap()):,} characters, {SHIPPED.stat().st_size:,} bytes")


def wanted() -> set[int]:
    """Code points; those that the whole font lacks are passed over."""
    _, vocabulary, _ = load_model(PRETRAINED)
    known = "".join(token for token in vocabulary.tokens if len(token) == 1)
    tables = "".join((POETRY / "verse" / name).read_text(encoding="utf-8") for name in ("pingshui.txt", "variants.txt"))
    counts = Counter("".join(tang.load(files=58, max_length=None).poems))
    often = "".join(character for character, count in counts.items() if count > 1)
    text = known + request.convert(known, "t2s") + tables + often
    return {*map(ord, text), *MARKS} - {ord("\n")}


if __name__ == "__main__":
    main()
