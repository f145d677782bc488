"""Videos as pictures: every n-th frame, none twice, and what breaks off is refused or taken up to there."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers.absent import absent

from data_prep import schema, shard_images, verify
from data_prep.sharding import description

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def salted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDDAP_SALT", "tests")


def film(path: Path, frames: list[np.ndarray], codec: str = "ffv1", layout: str = "bgr0") -> Path:
    """Write (H, W, 3) frames as a video of 10 a second, without loss unless a codec has some; skips without PyAV."""
    av = pytest.importorskip("av", reason="needs PyAV: pip install 'meddap[video]'")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(10))
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], layout
        for pixels in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def moving(count: int = 12, size: int = 48) -> list[np.ndarray]:
    """Return frames of noise with a bright square that moves by a pixel a frame."""
    ground, frames = RNG.integers(20, 120, (size, size, 3)).astype(np.uint8), []
    for number in range(count):
        frame = ground.copy()
        frame[10:26, number : number + 16] = 250
        frames.append(frame)
    return frames


def sharded(tmp_path: Path, *words: str, status: int = 0) -> Path:
    output = tmp_path / "out"
    assert shard_images.main(["--input", str(tmp_path / "in"), "--output", str(output), *words]) == status
    assert status or verify.main([str(output)]) == 0
    return output


def frames_of(output: Path) -> list[np.ndarray]:
    """The frames of the one video by their order, (H, W, 3)."""
    found = {}
    for name in schema.SPLITS:
        split = schema.Split(output, name)
        for number in range(len(split)):
            sample = split[number]
            slope, intercept = sample.scales[0]
            found[sample.order] = np.moveaxis(np.rint(sample.pixels * slope + intercept), 0, -1)
    return [found[order] for order in sorted(found)]


def test_frames_come_out_value_by_value(tmp_path: Path) -> None:
    """Every third of a lossless video, in colour; one patient, one series."""
    frames = moving()
    film(tmp_path / "in" / "a.mkv", frames)
    output = sharded(tmp_path, "colour=keep", "frame_stride=3", "video.max_change=-1")
    assert [each.tolist() for each in frames_of(output)] == [each.tolist() for each in frames[::3]]
    assert sum(split["series"] for split in schema.read_dataset(output)["splits"].values()) == 1


def test_copies_and_blank_frames_are_left_out_and_counted(tmp_path: Path) -> None:
    """A still of five frames and noise below two percent are one frame; a jump is another; black ones are none."""
    frames = moving(2, 48)
    still = [frames[0]] * 5
    noisy = [np.clip(frames[0].astype(int) + RNG.integers(-4, 5, frames[0].shape), 0, 255).astype(np.uint8)]
    other = RNG.integers(0, 256, frames[0].shape).astype(np.uint8)
    film(tmp_path / "in" / "a.mkv", [np.zeros_like(other), *still, *noisy, other, other])
    output = sharded(tmp_path, "colour=keep")
    assert [each.tolist() for each in frames_of(output)] == [frames[0].tolist(), other.tolist()]
    (row,) = {row["stack"]: row for row in description.read_manifest(output)}.values()
    assert row["notes"]["copies_left_out"] == 6 and row["notes"]["blank_frames_left_out"] == 1


@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.mov"])
def test_a_video_that_breaks_off(tmp_path: Path, name: str) -> None:
    """Cut at its half: one line and no sample, the rest of the folder is read; or the frames before, as they were."""
    frames = moving(40)
    path = film(tmp_path / "in" / name, frames, *(("mjpeg", "yuvj420p") if name == "a.mov" else ()))
    whole = tmp_path / "whole"
    assert shard_images.main(["--input", str(tmp_path / "in"), "--output", str(whole), "video.max_change=-1"]) == 0
    before = frames_of(whole)
    assert len(before) == 40
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    film(tmp_path / "in" / "z.mkv", moving(3))
    rows = description.read_manifest(sharded(tmp_path, "video.max_change=-1"))
    (said,) = (row["reason"] for row in rows if row["status"] == "rejected")
    if name == "a.mov":  # whose table of frames comes last
        assert said.startswith("cannot be read as a video")
        return
    assert said.startswith("breaks off") and said.endswith("video.broken=keep takes the frames before")
    (tmp_path / "in" / "z.mkv").unlink()
    (tmp_path / "out").rename(tmp_path / "first")
    kept = frames_of(sharded(tmp_path, "video.max_change=-1", "video.broken=keep"))
    assert 3 <= len(kept) < 40 and all(np.array_equal(*pair) for pair in zip(kept[:-2], before))


@pytest.mark.parametrize(
    ("name", "codec", "share"),
    [("a.mpg", "mpeg2video", 0.5), ("a.mpeg", "mpeg2video", 0.8), ("a.wmv", "wmv2", 0.5), ("a.wmv", "wmv2", 0.8)],
)
def test_files_that_do_not_count_their_frames(tmp_path: Path, name: str, codec: str, share: float) -> None:
    """MPEG and WMV, cut within a frame or, WMV, between two: refused in a line; or without the frame that was cut."""
    path = film(tmp_path / "in" / name, moving(60, 64), codec, "yuv420p")
    before = frames_of(sharded(tmp_path, "video.max_change=-1"))
    (tmp_path / "out").rename(tmp_path / "whole")
    assert len(before) == 60
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    film(tmp_path / "in" / "z.mkv", moving(3))
    rows = description.read_manifest(sharded(tmp_path, "video.max_change=-1"))
    (said,) = (row["reason"] for row in rows if row["status"] == "rejected")
    (tmp_path / "in" / "z.mkv").unlink()
    if said.startswith("cannot be read as a video"):  # the first frame was cut
        return
    assert said.startswith("breaks off") and said.endswith("video.broken=keep takes the frames before")
    (tmp_path / "out").rename(tmp_path / "first")
    kept = frames_of(sharded(tmp_path, "video.max_change=-1", "video.broken=keep"))
    assert 3 <= len(kept) < 60 and all(np.array_equal(*pair) for pair in zip(kept, before))


def test_hostile_videos(tmp_path: Path) -> None:
    """A text, an empty file, noise in place of a video, a sound track's header cut: a line each."""
    film(tmp_path / "in" / "good.mkv", moving(3))
    (tmp_path / "in" / "text.mp4").write_text("no video")
    (tmp_path / "in" / "empty.avi").write_bytes(b"")
    (tmp_path / "in" / "noise.mpg").write_bytes(RNG.bytes(5000))
    (tmp_path / "in" / "cut.mkv").write_bytes((tmp_path / "in" / "good.mkv").read_bytes()[:200])
    rows = description.read_manifest(sharded(tmp_path))
    reasons = [row["reason"] for row in rows if row["status"] == "rejected"]
    assert len(reasons) == 4 and all(
        reason.startswith(("cannot be read as a video", "holds no video")) for reason in reasons
    )


def test_without_the_library_a_video_is_left_out_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One line that says what to install."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(b"x")
    absent("av", tmp_path, monkeypatch)
    sharded(tmp_path, status=1)
    assert "pip install 'meddap[video]'" in capsys.readouterr().err
