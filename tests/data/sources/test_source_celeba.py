"""The source ``celeba``: copies on disk in every published shape, the network's hosts, and all that fails."""

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image
from tests.data.archives import make_celeba
from tests.data.local_server import QUOTA_PAGE

from unveil.data import celeba as layout
from unveil.data.celeba import ANNOTATION_FILES, CANVAS, CelebAFile
from unveil.data.config import Celeba, Download
from unveil.data.preprocess import preprocess
from unveil.data.sources import celeba, fetch
from unveil.data.sources.facts import SourceRecord
from unveil.data.sources.transfer import Host, HostFailed
from unveil.errors import UnveilError
from unveil.progress import Say

COUNT = 12
ZIP = "img_align_celeba.zip"
ALL_FILES = (ZIP, *ANNOTATION_FILES)


@dataclass
class StandIn:
    """A host that holds the files of a folder, but not those for which it has a reason to fail."""

    folder: Path | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def bring(self, target: Path, published: CelebAFile, say: Say) -> None:
        name = target.name
        self.asked.append(name)
        if name in self.reasons or self.folder is None:
            raise HostFailed(self.reasons.get(name, "no network"))
        shutil.copy(self.folder / name, target)


@pytest.fixture(autouse=True)
def _no_surprises(monkeypatch: pytest.MonkeyPatch) -> None:
    """No CELEBA_ROOT from outside, no host outside this machine."""
    monkeypatch.delenv("CELEBA_ROOT", raising=False)
    monkeypatch.setattr(celeba, "DRIVE", Host("the drive", StandIn().bring))
    monkeypatch.setattr(celeba, "MIRROR", Host("the mirror", StandIn().bring))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A small set in CelebA's format."""
    return make_celeba(tmp_path / "own", num_images=COUNT)


@pytest.fixture
def published(own: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same set, with its checksums as the published ones."""
    files = {
        name: CelebAFile(hashlib.md5((own / name).read_bytes()).hexdigest(), (own / name).stat().st_size, name)
        for name in ALL_FILES
    }
    monkeypatch.setattr(layout, "PUBLISHED", files)
    monkeypatch.setattr(layout, "PUBLISHED_IMAGES", COUNT)
    return own


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(destination: Path, path: Path | None, mirror: bool = True) -> tuple[SourceRecord, str]:
    """Run the source; return the facts and all that was said."""
    said: list[str] = []
    downloads = destination.parent / "downloads"
    facts = celeba.write(destination, path=path, mirror=mirror, say=said.append, downloads=downloads)
    assert not any("\n" in line for line in said)
    assert names_in(destination) == sorted(ALL_FILES)
    return facts, "\n".join(said)


def failure(destination: Path, path: Path | None, mirror: bool = True) -> str:
    """Run the source where it cannot work; return the line."""
    with pytest.raises(UnveilError) as caught:
        write(destination, path, mirror)
    line = str(caught.value)
    assert "\n" not in line
    return line


def unpack(folder: Path, into: str = "") -> None:
    """Replace the zip by the folder of its images."""
    with zipfile.ZipFile(folder / ZIP) as archive:
        archive.extractall(folder / into)
    (folder / ZIP).unlink()


def same_files(a: Path, b: Path, names: tuple[str, ...] = ALL_FILES) -> bool:
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


# --- a copy on disk ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ZIP])
def test_an_own_set_is_copied_as_it_is(own: Path, destination: Path, name: str) -> None:
    facts, said = write(destination, own / name)
    assert same_files(own, destination)
    assert (facts.published, facts.canvas, facts.images) == (False, CANVAS, COUNT)
    assert "own set" in facts.origin and str(own) not in facts.origin
    assert "not the published set" in said


def test_the_variable_names_the_copy_and_the_parameter_wins(
    own: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELEBA_ROOT", str(own))
    assert "CELEBA_ROOT" in write(destination, None)[1]
    monkeypatch.setenv("CELEBA_ROOT", str(own / "no"))
    assert failure(destination, None).startswith("CELEBA_ROOT")
    write(destination, own)


def as_published(own: Path) -> Path:
    """Anno, Eval, Img."""
    for folder in ("Anno", "Eval", "Img"):
        (own / folder).mkdir()
    (own / ZIP).rename(own / "Img" / ZIP)
    (own / "list_eval_partition.txt").rename(own / "Eval" / "list_eval_partition.txt")
    for name in ANNOTATION_FILES:
        if (own / name).exists():
            (own / name).rename(own / "Anno" / name)
    return own


def as_published_zip(own: Path) -> Path:
    return as_published(own) / "Img" / ZIP


def as_torchvision(own: Path) -> Path:
    """All below celeba/, the archive unpacked beside itself."""
    own.rename(own.with_name("celeba"))
    (own / "celeba").parent.mkdir()
    own.with_name("celeba").rename(own / "celeba")
    with zipfile.ZipFile(own / "celeba" / ZIP) as archive:
        archive.extractall(own / "celeba")
    return own


def as_it_was(own: Path) -> Path:
    return own


def renamed(own: Path) -> Path:
    """As a browser saves the second download."""
    (own / ZIP).rename(own / "img_align_celeba (1).zip")
    return own / "img_align_celeba (1).zip"


@pytest.mark.parametrize("arrange", [as_it_was, as_published, as_published_zip, as_torchvision, renamed])
def test_zips_are_found(published: Path, destination: Path, tmp_path: Path, arrange: Callable[[Path], Path]) -> None:
    original = make_celeba(tmp_path / "original", num_images=COUNT)
    facts, _ = write(destination, arrange(published))
    assert (facts.published, facts.canvas, facts.images) == (True, CANVAS, COUNT)
    assert "non-commercial" in facts.licence
    assert same_files(original, destination)


def unpacked_as_published(own: Path) -> None:
    unpack(own, "Img")
    (own / "Anno").mkdir()
    for name in ANNOTATION_FILES:
        (own / name).rename(own / "Anno" / name)


def nested(own: Path) -> None:
    """As Kaggle's archive unpacks."""
    unpack(own, "img_align_celeba")


@pytest.mark.parametrize(
    ("arrange", "place"),
    [
        (unpack, ""),
        (unpack, "img_align_celeba"),
        (unpacked_as_published, ""),
        (nested, ""),
        (nested, "img_align_celeba/img_align_celeba"),
    ],
)
def test_unpacked_images_are_packed(
    own: Path, destination: Path, tmp_path: Path, arrange: Callable[[Path], None], place: str
) -> None:
    original = make_celeba(tmp_path / "original", num_images=COUNT)
    arrange(own)
    for junk in (".DS_Store", "Thumbs.db"):
        for folder in own.rglob("img_align_celeba"):
            (folder / junk).write_bytes(b"x")
    facts, _ = write(destination, own / place)
    assert same_files(original, destination, ANNOTATION_FILES)
    assert "unpacked" in facts.origin
    assert facts.canvas == CANVAS
    with zipfile.ZipFile(destination / ZIP) as ours, zipfile.ZipFile(original / ZIP) as theirs:
        assert [member.compress_type for member in ours.infolist()] == [zipfile.ZIP_STORED] * COUNT
        assert ours.namelist() == [name for name in theirs.namelist() if not name.endswith("/")]
        assert all(ours.read(name) == theirs.read(name) for name in ours.namelist())


def test_packing_gives_the_same_bytes_again(own: Path, destination: Path) -> None:
    unpack(own)
    write(destination, own)
    first = (destination / ZIP).read_bytes()
    copy = own.with_name("elsewhere")
    shutil.copytree(own, copy, copy_function=shutil.copyfile)  # new dates and permissions
    for path in (copy / "img_align_celeba").iterdir():
        path.chmod(0o600)
    write(destination, copy)
    assert (destination / ZIP).read_bytes() == first


def test_unpacked_images_of_the_published_set_are_not_called_published(published: Path, destination: Path) -> None:
    unpack(published)
    facts, said = write(destination, published)
    assert not facts.published
    assert "no checksum covers" in facts.origin
    assert "unpacked images have none" in said


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_changed_file_of_the_published_set_is_named(published: Path, destination: Path, name: str) -> None:
    content = (published / name).read_bytes()
    if name == ZIP:  # one bit in the data of the first image, as a bad disk would do
        place = content.index(b"\xff\xd8") if b"\xff\xd8" in content else 200
        changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    else:
        changed = content.replace(b"\r\n", b"\n") + b"\n"
    (published / name).write_bytes(changed)
    line = failure(destination, published)
    assert "changed checksum" in line
    assert name in line
    assert layout.PUBLISHED[name].md5 in line


def test_a_repacked_archive_of_the_published_set_is_named(published: Path, destination: Path) -> None:
    with zipfile.ZipFile(published / ZIP, "a") as archive:
        archive.writestr("note.txt", b"mine")
    line = failure(destination, published)
    assert "changed checksum" in line and "unpacked images" in line


def test_another_size_leaves_no_canvas_and_a_corrupt_image_is_left_to_preprocess(own: Path, destination: Path) -> None:
    unpack(own)
    (own / "img_align_celeba" / "000003.jpg").write_bytes(b"not an image")
    assert write(destination, own)[0].canvas == CANVAS
    Image.new("RGB", (178, 200)).save(own / "img_align_celeba" / "000003.jpg")
    facts, said = write(destination, own)
    assert facts.canvas is None and "178 x 218" in said


def _flag(content: bytearray, local: int, entry: int) -> None:
    content[local + 6] |= 1
    content[entry + 8] |= 1


def _method(content: bytearray, local: int, entry: int) -> None:
    content[local + 8] = content[entry + 10] = 97  # WavPack


def _data(content: bytearray, local: int, entry: int) -> None:
    start = local + 30 + len("img_align_celeba/000003.jpg") + 9  # after the properties of LZMA
    content[start : start + 40] = b"\xff" * 40


def _length(content: bytearray, local: int, entry: int) -> None:
    content[local + 22 : local + 26] = content[entry + 24 : entry + 28] = b"\xff\xff\xff\x7f"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_flag, "encrypted"), (_method, "not supported"), (_data, ""), (_length, "2,147,483,647 bytes, expected at most")],
)
def test_a_member_that_cannot_be_read_is_a_corrupt_image(
    own: Path, destination: Path, method: int, spoil: Callable[[bytearray, int, int], None], words: str
) -> None:
    with zipfile.ZipFile(own / ZIP) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name.endswith(".jpg")}
    with zipfile.ZipFile(own / ZIP, "w", method) as archive:
        for name, image in members.items():
            archive.writestr(name, image)
    content = bytearray((own / ZIP).read_bytes())
    member = b"img_align_celeba/000003.jpg"
    spoil(content, content.index(member) - 30, content.rindex(member) - 46)
    (own / ZIP).write_bytes(content)

    own_set = Download(source="celeba", celeba=Celeba(path=own))
    assert fetch(destination, own_set, say=lambda line: None).canvas == CANVAS
    settings = {"protocol": "ddim", "image_size": 8, "shard_size": 99, "workers": 1}
    with pytest.raises(UnveilError, match=rf"000003\.jpg cannot be used \(.*{words}"):
        preprocess(destination, own / "shards", on_corrupt="error", **settings)  # type: ignore[arg-type]
    index = preprocess(destination, own / "shards", on_corrupt="skip", **settings)  # type: ignore[arg-type]
    assert index.corrupt == ("000003.jpg",)


# --- what is wrong with a copy ----------------------------------------------------------------------------


def _truncate(own: Path) -> None:
    content = (own / ZIP).read_bytes()
    (own / ZIP).write_bytes(content[: len(content) * 2 // 3])


def _thin_out(own: Path) -> None:
    unpack(own)
    for number in (2, 5, 7, 9):
        (own / "img_align_celeba" / f"{number:06d}.jpg").unlink()


def _add_image(own: Path) -> None:
    unpack(own)
    shutil.copy(own / "img_align_celeba" / "000001.jpg", own / "img_align_celeba" / "000099.jpg")


def _double(own: Path) -> None:
    with zipfile.ZipFile(own / ZIP, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("img_align_celeba/000004.jpg", b"again")


def _edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda own: (own / name).write_text((own / name).read_text().replace(old, new, 1))


def _empty(own: Path) -> None:
    shutil.rmtree(own)
    (own / "img_align_celeba").mkdir(parents=True)


WRONG: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "not there": (shutil.rmtree, ["download.celeba.path: ", "own does not exist"]),
    "no images": (_empty, ["neither img_align_celeba.zip nor a folder img_align_celeba"]),
    "truncated": (_truncate, ["truncated zip", " bytes without a table of contents"]),
    "images lacking": (
        _thin_out,
        [f"lacks 4 of the {COUNT} images in list_attr_celeba.txt", "(000002.jpg, 000005.jpg, 000007.jpg, ...)"],
    ),
    "rows lacking": (_add_image, [f"lacks rows for 1 of the {COUNT + 1} images", "000099.jpg"]),
    "an image twice": (_double, ["000004.jpg twice"]),
    "a row less": (
        lambda own: drop_line(own / "identity_CelebA.txt", 2),
        ["own/identity_CelebA.txt: row 3 is of 000004.jpg, expected 000003.jpg"],
    ),
    "a broken row": (
        _edit("list_eval_partition.txt", "000002.jpg 0", "000002.jpg 7"),
        ["own/list_eval_partition.txt, line 2"],
    ),
    "Kaggle's tables": (
        lambda own: (own / "list_attr_celeba.txt").rename(own / "list_attr_celeba.csv"),
        ["missing annotation file list_attr_celeba.txt", "Kaggle"],
    ),
}


def drop_line(path: Path, number: int) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:number] + lines[number + 1 :]))


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_with_a_copy_is_one_line(own: Path, destination: Path, kind: str) -> None:
    spoil, words = WRONG[kind]
    spoil(own)
    line = failure(destination, own)
    assert all(word in line for word in words)


@pytest.mark.parametrize("name", ALL_FILES)
def test_each_file_is_named_that_is_missing_or_a_quota_page(own: Path, destination: Path, name: str) -> None:
    (own / name).write_bytes(QUOTA_PAGE)
    line = failure(destination, own)
    assert str(own / name) in line and "Quota exceeded" in line
    (own / name).unlink()
    if name != ZIP:
        line = failure(destination, own)
        assert f"missing annotation file {name};" in line and celeba.HOME in line


# --- the network ------------------------------------------------------------------------------------------


QUOTA = {ZIP: "quota exceeded"}


@pytest.fixture
def drive(published: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    host = StandIn(published)
    monkeypatch.setattr(celeba, "DRIVE", Host("the drive", host.bring))
    return host


@pytest.fixture
def mirror(published: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    host = StandIn(published)
    monkeypatch.setattr(celeba, "MIRROR", Host("the mirror", host.bring))
    return host


def test_the_drive_delivers_all(published: Path, destination: Path, drive: StandIn, mirror: StandIn) -> None:
    facts, said = write(destination, None)
    assert same_files(published, destination)
    assert (facts.published, facts.origin) == (True, "CelebA's published files, from the drive")
    assert drive.asked[-1] == ZIP and mirror.asked == []  # the small files come first
    assert "asking the network" in said
    assert not (destination.parent / "downloads").exists()


def test_the_mirror_delivers_what_the_drive_does_not(
    published: Path, destination: Path, drive: StandIn, mirror: StandIn
) -> None:
    drive.reasons = QUOTA
    facts, said = write(destination, None)
    assert same_files(published, destination) and facts.published
    assert mirror.asked == [ZIP]
    assert f"from the mirror: {ZIP}" in facts.origin and "from the drive: identity_CelebA.txt" in facts.origin
    assert f"{ZIP}: the drive: quota exceeded; turning to the mirror" in said


@pytest.mark.parametrize("changed", [True, False])
def test_a_host_that_fails_or_has_a_changed_file_is_not_asked_again(
    published: Path, destination: Path, drive: StandIn, mirror: StandIn, changed: bool
) -> None:
    drive.folder = make_celeba(destination.parent / "changed", num_images=COUNT + 1) if changed else None
    facts, said = write(destination, None)
    assert same_files(published, destination)
    assert f"the drive: {'changed checksum: found MD5' if changed else 'no network'}" in said
    assert len(drive.asked) == 1 and sorted(mirror.asked) == sorted(ALL_FILES)
    assert facts.origin == "CelebA's published files, from the mirror"


def test_without_permission_no_mirror_is_asked_and_what_arrived_serves_the_next_run(
    destination: Path, drive: StandIn, mirror: StandIn
) -> None:
    drive.reasons = QUOTA
    line = failure(destination, None, mirror=False)
    assert "quota exceeded" in line and "CELEBA_ROOT" in line
    assert mirror.asked == [] and names_in(destination) == []
    drive.asked, drive.reasons = [], {}
    facts, said = write(destination, None, mirror=False)
    assert drive.asked == [ZIP]
    assert "complete from an earlier run" in said
    assert facts.origin == "CelebA's published files, from the drive"


def test_a_gathered_file_that_was_damaged_is_fetched_again(published: Path, destination: Path, drive: StandIn) -> None:
    downloads = destination.parent / "downloads"
    downloads.mkdir()
    name = "identity_CelebA.txt"
    (downloads / name).write_bytes(b"x" * (published / name).stat().st_size)
    write(destination, None)
    assert name in drive.asked
    assert same_files(published, destination)


def test_no_network_is_one_line(published: Path, destination: Path) -> None:
    line = failure(destination, None)
    assert "the drive: no network" in line
    assert "the mirror: no network" in line
    assert "download.celeba.path or CELEBA_ROOT" in line
    assert names_in(destination) == []


def test_a_full_disk_is_seen_before_the_first_byte(
    destination: Path, drive: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(destination)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert "disk full" in failure(destination, None)
    assert drive.asked == []
