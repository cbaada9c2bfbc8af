"""Corpora of other shapes than a folder per label: tables, patterns, parts, other rates and lengths."""

import itertools
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cache.cli import InputError
from cache.clip_id import Part, file_of, split_clip_id
from cache.config import FeatureConfig
from cache.index import NO_FOLD, TEST, Cache
from cache.index import TRAIN as TRAINED
from infer.audit.__main__ import main as audit
from infer.calibrate.__main__ import main as calibrate
from infer.evaluate.__main__ import main as evaluate
from infer.export.__main__ import main as export
from infer.predict.__main__ import main as predict
from infer.report.__main__ import main as report
from pipeline.build_cache import main as build
from pipeline.clips import VALIDATION
from pipeline.corpus import read_corpus
from pipeline.decode import read_clip, read_recording
from pipeline.options import TASKS, BuildOptions
from tests.conftest import only_cache
from tests.corpora import LABELS, sound, write_birdclef, write_esc50, write_table, write_urbansound
from train.run import main as train

FSDD = Path(__file__).parents[2] / "shared/data/fsdd/recordings.tar"
SMALL = ["--n-mels", "16", "--n-fft", "2048", "--num-views", "1", "--jobs", "1"]
TRAIN = ["--n-mels", "16", "--model", "test_resnet", "--epochs", "4", "--batch-size", "8", "--amp", "off"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def built() -> Cache:
    return Cache(only_cache(Path("data/cache")))


def use(capsys: pytest.CaptureFixture, table: str, audio: str, clips: int) -> dict:
    """Train two folds and run every command of infer on them; returns the figures out of fold."""
    held = [*TRAIN, "--hold-back", "0.15"]
    assert train(["--fold", "0", *held]) == train(["--fold", "1", *held]) == 0
    run = ["--folds", "0,1", "--device", "cpu"]
    assert evaluate([*run, "--json", "figures.json"]) == 0
    assert audit(["--folds", "0,1"]) == 0
    calibrate(run)  # on so few clips that it may say so, but of known labels
    assert "not the label" not in capsys.readouterr().err
    assert report([*run, "--tta", "1", "--worst", "3"]) == 0
    page = Path("report.html").read_text()
    assert '"error"' not in page[: page.index("</script>")]
    assert predict([*run, "--tta", "1", "--input", table, "--audio-dir", audio]) == 0
    assert len(Path("predictions.csv").read_text().splitlines()) == clips + 1
    assert export(["--folds", "0", "--tta", "1", "--check-clips", "2"]) == 0
    capsys.readouterr()
    assert evaluate([*run, "--tta", "1", "--manifest", table, "--audio-dir", audio]) == 2
    assert "was trained on" in capsys.readouterr().err
    return json.loads(Path("figures.json").read_text())


def test_esc50(here: Path, capsys) -> None:
    """Five seconds at 44.1 kHz with given folds: nothing is lost, groups stay together, every command works."""
    write_esc50(here / "esc", per_fold=2)
    flags = ["--audio-dir", "esc/audio", "--manifest", "esc/esc50.csv", *SMALL]
    assert build([*flags, "--cache-dir", "lossy"]) == 0
    assert (
        "40 of 40 recordings last 5 s at 44,100 Hz; kept: the loudest 1 s at 16,000 Hz; "
        "to keep all: --clip-seconds 5 (or --long split) --sample-rate 44100\n" in capsys.readouterr().out
    )
    assert build([*flags, "--clip-seconds", "5", "--sample-rate", "44100"]) == 0
    output = capsys.readouterr().out
    assert "kept:" not in output
    assert "folds as given: 1 is --fold 0, 2 is --fold 1" in output
    assert "clock 10, dog 10, rain 10, siren 10" in output
    cache = built()
    assert (cache.config.sample_rate, cache.config.samples, cache.config.fmax) == (44100, 220500, 22050)
    for clip in cache.clips:
        assert clip["clip_id"].startswith(b"%d-" % (clip["fold"] + 1))
    assert cache.index["split"]["folds"] == 5
    assert cache.index["counts"]["cropped"] == cache.index["counts"]["resampled"] == 0
    figures = use(capsys, "esc/esc50.csv", "esc/audio", 40)
    assert figures["recordings"] is None
    assert predict(["--folds", "0", "--tta", "1", "--input", "esc/audio", "--windows", "found.csv"]) == 0


def test_urbansound(here: Path, capsys) -> None:
    """Base names in ten fold folders, several rates, stereo."""
    write_urbansound(here / "urban", per_fold=1)
    assert build(["--audio-dir", "urban/audio", *SMALL, "--folds", "2", "--cache-dir", "folders"]) == 0
    output = capsys.readouterr().out
    assert "the labels are fold1, fold10, fold2, fold3: if these are folds, build with --manifest\n" in output
    flags = ["--audio-dir", "urban/audio", "--manifest", "urban/UrbanSound8K.csv", "--clip-seconds", "4"]
    assert build([*flags, *SMALL]) == 0
    cache = built()
    assert cache.index["split"]["folds"] == 10
    assert all(clip["clip_id"].startswith(b"fold%d/" % (clip["fold"] + 1)) for clip in cache.clips)
    use(capsys, "urban/UrbanSound8K.csv", "urban/audio", 40)


def test_birdclef_split(here: Path, capsys) -> None:
    """Long MP3 files become consecutive clips that share a fold and end with the recording; figures are for both."""
    write_birdclef(here / "bird", per_label=4)
    flags = ["--audio-dir", "bird/train_audio", "--manifest", "bird/train_metadata.csv", "--clip-seconds", "5"]
    flags += ["--sample-rate", "32000", "--folds", "2", *SMALL]
    assert build([*flags, "--cache-dir", "lossy"]) == 0
    output = capsys.readouterr().out
    assert re.search(
        r"16 of 16 recordings last up to \d+ s; kept: the loudest 5 s at 32,000 Hz; .*: --long split\n", output
    )
    assert build([*flags, "--long", "error"]) == 2
    assert re.search(r"recordings longer than 5 s: \d+, such as dog/XC0.mp3", capsys.readouterr().err)
    assert build([*flags, "--long", "split"]) == 0
    cache = built()
    parts: dict[str, list] = {}
    for clip in cache.clips:
        file, part = split_clip_id(clip["clip_id"].decode())
        parts.setdefault(file, []).append((part.start_s, part.end_s, clip["fold"]))
    for file, spans in parts.items():
        seconds = soundfile.info(f"bird/train_audio/{file}").duration
        spans.sort()
        assert spans[0][0] == 0
        assert spans[-1][1] == pytest.approx(seconds, abs=1e-4)
        assert all(end - start == pytest.approx(5) for start, end, _ in spans)
        assert all(later[0] <= earlier[1] + 1e-6 for earlier, later in itertools.pairwise(spans))
        assert len({fold for *_, fold in spans}) == 1
    figures = use(capsys, "bird/train_metadata.csv", "bird/train_audio", 16)
    assert figures["recordings"]["recordings"] == 16
    assert figures["clips"] == len(cache.clips)
    assert build([*flags, "--long", "split"]) == 0
    assert "built 0 clips" in capsys.readouterr().out


def test_parts_of_a_table(here: Path, capsys) -> None:
    """Time-stamped parts hold exactly the samples of their stretch, and share their recording's fold."""
    write_birdclef(here / "bird", per_label=4)
    flags = ["--audio-dir", "bird/train_audio", "--manifest", "bird/parts.csv", "--clip-seconds", "2.5"]
    assert build([*flags, "--sample-rate", "32000", "--folds", "2", *SMALL]) == 0
    cache = built()
    name = cache.clips["clip_id"][0].decode()
    assert name == "clock/XC3000.mp3#t=0.5,3"
    whole, rate = read_recording(f"bird/train_audio/{file_of(name)}")
    clip = read_clip(f"bird/train_audio/{name}", cache.config)
    assert np.allclose(clip.samples, whole[rate // 2 : 3 * rate], atol=1e-6)
    assert (clip.padded, clip.cropped) == (False, False)
    folds = {}
    for row in cache.clips:
        assert folds.setdefault(file_of(row["clip_id"].decode()), row["fold"]) == row["fold"]
    use(capsys, "bird/parts.csv", "bird/train_audio", 32)
    table = ["--input", "bird/parts.csv", "--audio-dir", "bird/train_audio"]
    assert predict(["--folds", "0", *table, "--windows", "found.csv"]) == 2
    assert ": a part of a recording; windows are of whole ones" in capsys.readouterr().err


@pytest.mark.skipif(not FSDD.exists(), reason="the Free Spoken Digit Dataset is not there")
def test_spoken_digits(here: Path, capsys) -> None:
    """A flat folder at 8 kHz whose names say label and speaker."""
    with tarfile.open(FSDD) as tar:
        tar.extractall("data/audio", filter="data")
    assert build(SMALL) == 2
    assert "none of 1,020 recordings fits <label>/…; name what their paths say" in capsys.readouterr().err
    flags = ["--pattern", r"(?P<label>\d)_(?P<speaker>\w+)_\d+\.wav", "--sample-rate", "8000", "--folds", "3"]
    assert build([*SMALL, *flags]) == 0
    assert "1,020 clips of 6 speakers, 10 labels" in capsys.readouterr().out
    cache = built()
    for fold in range(3):
        assert len(np.unique(cache.clips["speaker"][cache.clips["fold"] == fold])) == 2
    assert train(["--fold", "0", *TRAIN]) == 0
    assert evaluate(["--folds", "0", "--device", "cpu"]) == 0
    assert "out of fold: 340 clips" in capsys.readouterr().out


TABLE = "filename,label,speaker,fold\na.wav,x,s1,1\nb.wav,y,s1,1\nc.wav,x,s2,2\nd.wav,y,s2,2\n"


@pytest.fixture
def four(here: Path) -> Path:
    (here / "data/audio/deep").mkdir(parents=True)
    rng = np.random.default_rng(3)
    for place in ("a.wav", "b.wav", "c.wav", "deep/d.wav"):
        soundfile.write(here / "data/audio" / place, sound(ord(place[-5]) % 2, 1, 16000, rng), 16000)
    return here


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TABLE.replace("d.wav,y", "e.wav,y"), "line 5, column filename: no file 'e.wav' below data/audio;"),
        (TABLE.replace("d.wav,y", "d.wav,"), "line 5, column label: empty"),
        (TABLE.replace("s2,2\nd", "s2,\nd"), "line 4, column fold: empty"),
        (TABLE.replace("y,s2,2", "y,s2,1"), "line 5, column fold: '1', but another for the speaker s2 in line 4"),
        (TABLE.replace("d.wav", "a.wav"), "line 5, column filename: a.wav stands in line 2 already"),
        (TABLE.replace("filename", "sound"), "line 1: no column of files; expected one of file, path,"),
        (TABLE.replace("label", "kind"), "line 1: no column of labels; expected one of label, category,"),
        (TABLE.replace("c.wav,x", "c.wav,x,z"), "line 4: 5 cells; the header has 4"),
        (TABLE.replace("c.wav,x", '"c.wav,x'), "is a quote not closed?"),
        (TABLE.replace("fold", "split"), "line 2, column split: '1'; expected train, validation or test"),
        (
            TABLE.replace("x", "\xe4").encode("latin-1"),
            "not text in UTF-8 (invalid continuation byte at byte 34, line 2); save it as UTF-8",
        ),
        ("filename,label\n", "no rows below the header"),
        (TABLE.replace("speaker", "label"), "line 1: 2 columns are called label; leave one"),
        ("", "no column of files"),
        ("file,label,start_s,end_s\na.wav,x,0.2,1.7\n", "line 2, column end_s: 1.7 s; a.wav has 1"),
        ("file,label,start_s,end_s\na.wav,x,0.8,0.2\n", "line 2, column end_s: 0.2 s; expected more than the start"),
        ("file,label,start_s\na.wav,x,-1\n", "line 2, column start_s: '-1'; expected seconds, such as 2.5"),
        ("file,label,start_s\na.wav,x,1,5\n", "line 2: 4 cells; the header has 3"),
        (TABLE.replace("2\n", "test\n"), "line 4, column fold: 'test' is a split, not a fold: name it so (--columns"),
        ("a.wav\tx\nb.wav\ty\n", "line 1: names a recording (a.wav), but should name columns; put a line above it"),
        (
            "file,label,start_s,split\na.wav,x,,train\na.wav,x,0.5,test\n",
            "line 3, column split: of a.wav, which line 2 gives to another",
        ),
        (
            "file,label,start_s,end_s,speaker,fold\na.wav,x,0,0.5,p,0\na.wav,x,0.5,1,q,1\n",
            "line 3, column fold: of a.wav, which line 2 gives to another",
        ),
    ],
)
def test_faults_of_tables_are_named(four: Path, capsys, text: str | bytes, expected: str) -> None:
    """One line names the table, the line and the column, and no cache is left."""
    Path("t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert build(["--manifest", "t.csv", *SMALL]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: t.csv")
    assert expected in lines[0]
    assert not list(Path("data").glob("cache/*/index.json"))


@pytest.mark.parametrize(
    "text",
    [
        TABLE,
        "\ufeff" + TABLE.replace("\n", "\r\n"),
        TABLE.replace(",", ";"),
        TABLE.replace(",", "\t"),
        TABLE.replace("fold", 'fold,"a; b; c; d; e; f"').replace("1\n", "1,\n").replace("2\n", "2,\n"),
        TABLE.replace("a.wav", '"a.wav"').replace("\n", "\n\n"),
        TABLE.replace("a.wav", "./a.wav").replace("b.wav", "audio\\b.wav").replace("d.wav", "deep/d.wav"),
        TABLE.replace(".wav", ""),
        TABLE.replace("filename", "WAV").replace("label", "Kind"),
        TABLE.replace("s1,1\nc", "s1,1.0\nc").replace("s2,2\nd", "s2,02\nd"),
    ],
    ids="plain Windows semicolons tabs quoted-header quotes paths no-suffix other-names numbers".split(),
)
def test_tables_as_programs_write_them(four: Path, text: str) -> None:
    """All are the same table."""
    Path("t.csv").write_bytes(text.encode())
    columns = ["--columns", "file=WAV,label=kind"] if "WAV" in text else []
    assert build(["--manifest", "t.csv", *columns, *SMALL]) == 0
    clips = built().clips
    assert clips["clip_id"].tolist() == [b"a.wav", b"b.wav", b"c.wav", b"deep/d.wav"]
    assert clips["speaker"].tolist() == [b"s1", b"s1", b"s2", b"s2"]
    assert clips["fold"].tolist() == [0, 0, 1, 1]


def test_quotes_in_a_table_of_tabs(four: Path) -> None:
    """Where cells may not hold tabs, as in Common Voice, a quote that opens a sentence swallows no rows."""
    said = ['"stop', "go", '"yes" he said', '"yes" and "no"']
    rows = [f"{name}.wav\t{label}\t{text}" for name, label, text in zip("abcd", "xyxy", said, strict=True)]
    Path("t.tsv").write_text("\n".join(["path\tlabel\tsentence", *rows]) + "\n")
    assert build(["--manifest", "t.tsv", "--folds", "2", *SMALL]) == 0
    assert len(built().clips) == 4
    Path("t.tsv").write_text('path\tlabel\tnote\n"a.wav"\tx\t"one\nof two"\nb.wav\ty\t\nc\tx\t\nd\ty\t\n')
    assert build(["--manifest", "t.tsv", "--folds", "2", *SMALL]) == 0
    assert len(built().clips) == 4


def test_lists_beside_a_table(four: Path) -> None:
    """A list names files whose parts are clips, and says what it takes from another split."""
    rows = [(f"{name}.wav", "x", start, start + 0.4) for name in "abcd" for start in (0, 0.5)]
    write_table(Path("t.csv"), "file,label,start_s,end_s", rows)
    Path("data/audio/testing_list.txt").write_text("a.wav\ndeep/d.wav\nb.wav#t=0,0.4\n")
    corpus = read_corpus(BuildOptions(manifest="t.csv"))
    tested = corpus.clips["clip_id"][corpus.clips["split"] == TEST].tolist()
    assert tested == [
        b"a.wav#t=0,0.4",
        b"a.wav#t=0.5,0.9",
        b"b.wav#t=0,0.4",
        b"deep/d.wav#t=0,0.4",
        b"deep/d.wav#t=0.5,0.9",
    ]
    assert (corpus.notes[0], corpus.warnings) == ("testing_list.txt: 3 lines, 5 clips", [])
    write_table(Path("t.csv"), "file,label,split", [(n, "x", "test" if n == "d" else "train") for n in "abcd"])
    Path("data/audio/testing_list.txt").write_text("a.wav\ndeep/d.wav\n")
    corpus = read_corpus(BuildOptions(manifest="t.csv"))
    assert corpus.clips["split"].tolist() == [TEST, TRAINED, TRAINED, TEST]
    assert corpus.warnings == ["testing_list.txt: takes 1 clip from another split"]
    Path("data/audio/validation_list.txt").write_text("b.wav\n")
    corpus = read_corpus(BuildOptions(pattern="(?P<label>[a-d])", split="official"))
    assert corpus.clips["split"].tolist() == [TEST, VALIDATION, TRAINED, TEST]
    assert corpus.warnings == [], "the two lists contradict nobody"
    Path("data/audio/validation_list.txt").write_text("b.wav\na.wav\n")
    corpus = read_corpus(BuildOptions(pattern="(?P<label>[a-d])", split="official"))
    assert corpus.warnings == ["testing_list.txt: takes 1 clip from another split"]


def test_splits_of_a_table(four: Path, capsys) -> None:
    """Rows for validation are the only fold, rows for testing the split test; groups stand on one side."""
    Path("t.csv").write_text(TABLE.replace("fold", "split").replace(",1", ",Train").replace(",2", ",val"))
    assert build(["--manifest", "t.csv", *SMALL]) == 0
    clips = built().clips
    assert clips["fold"].tolist() == [NO_FOLD, NO_FOLD, 0, 0]
    rows = [("a.wav", "x", "test"), ("b.wav", "y", "train"), ("c.wav", "x", "train"), ("d.wav", "y", "train")]
    write_table(Path("t.csv"), "file,label,split", rows)
    soundfile.write("data/audio/e.wav", sound(1, 1, 16000, np.random.default_rng(5)), 16000)
    write_table(Path("t.csv"), "file,label,split", [*rows, ("e.wav", "x", "train")])
    assert build(["--manifest", "t.csv", "--folds", "2", *SMALL]) == 0
    assert (built().clips["split"] == TEST).tolist() == [True, False, False, False, False]
    write_table(Path("t.csv"), "file,label,split,speaker", [(*row, "s") for row in rows])
    capsys.readouterr()
    assert build(["--manifest", "t.csv", *SMALL]) == 2
    assert "line 3, column split: 'train', but another for the speaker s in line 2" in capsys.readouterr().err


def test_a_side_is_what_it_means(four: Path) -> None:
    """Two words for one split are one side, and clips for testing have no fold, whatever is said of it."""
    rows = [("a.wav", "x", "train", 1), ("b.wav", "y", "Training", 1), ("c.wav", "x", "test", 1), ("d", "y", "TEST", 2)]
    write_table(Path("t.csv"), "file,label,split,fold,speaker", [(*row, row[2][:2].lower()) for row in rows])
    assert build(["--manifest", "t.csv", *SMALL]) == 0
    assert built().clips["fold"].tolist() == [0, 0, NO_FOLD, NO_FOLD]


def test_names_say_what_a_table_does_not(four: Path, capsys) -> None:
    """With --pattern, label, speaker and fold come from the paths where there is no such column."""
    Path("t.csv").write_text("file,label\n" + "".join(f"{name},x\n" for name in "abc") + "d,y\n")
    assert build(["--manifest", "t.csv", "--pattern", r"(?P<speaker>[a-d])\.wav", "--folds", "2", *SMALL]) == 2
    assert "y (1)" in capsys.readouterr().err
    Path("t.csv").write_text("file,speaker\n" + "".join(f"{name},s{name}\n" for name in "abcd"))
    says = r"(?P<label>[ac]|[bd])(?P<fold>)\.wav|(?P<split>q)"
    assert build(["--manifest", "t.csv", "--pattern", says, *SMALL]) == 2
    assert "line 2, column file: the fold of a.wav by --pattern: empty" in capsys.readouterr().err
    for name in ("a1", "b1", "c2", "d2"):
        soundfile.write(f"data/audio/{name}.wav", sound(0, 1, 16000, np.random.default_rng(ord(name[0]))), 16000)
    Path("t.csv").write_text("file,speaker\na1,p\nb1,p\nc2,q\nd2,q\n")
    assert build(["--manifest", "t.csv", "--pattern", r"(?P<label>[a-d])(?P<fold>\d)", *SMALL]) == 0
    clips = built().clips
    assert (built().classes, clips["fold"].tolist()) == (["a", "b", "c", "d"], [0, 0, 1, 1])
    assert "fold 0 has no clip to train on of 2 labels: a, b" in capsys.readouterr().out
    assert build(["--manifest", "t.csv", *SMALL]) == 2
    assert "no column of labels" in capsys.readouterr().err


def test_names_with_files_beside_them(four: Path) -> None:
    """What lies beside a recording under its name, such as notes, is not meant by the name without a suffix."""
    for name in ("a.json", "a.txt", "deep/d.json"):
        (four / "data/audio" / name).write_text("{}")
    Path("t.csv").write_text(TABLE.replace(".wav", "").replace("d,y", "deep/d,y"))
    assert build(["--manifest", "t.csv", *SMALL]) == 0
    assert built().clips["clip_id"].tolist() == [b"a.wav", b"b.wav", b"c.wav", b"deep/d.wav"]


def test_missing_files_can_be_left_out(four: Path, capsys) -> None:
    """With --ignore-missing the rest is built, and the summary counts what is not."""
    Path("t.csv").write_text(TABLE + "gone.wav,x,s1,1\n")
    assert build(["--manifest", "t.csv", "--ignore-missing", *SMALL]) == 0
    assert "left out: 1 row; t.csv, line 6, column filename: no file 'gone.wav'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("(", "--pattern (: missing )"),
        ("x", "no named group; expected some of (?P<label>…)"),
        ("(?P<word>.)", "the group word; expected some of"),
        ("(?P<label>zz)", "none of 4 recordings fits --pattern (?P<label>zz), such as a.wav"),
        (r"(?P<label>\w)\.wav(?P<split>.)?|(?P<fold>q)", "the fold by --pattern"),
        (r"(?P<speaker>)(?P<fold>\w)\.(?P<label>wav)", "one label only (wav)"),
        (r"(?P<fold>\w)\.(?P<speaker>wa)(?P<label>v)", "'b', but another for the speaker wa in a.wav; correct"),
    ],
)
def test_faults_of_patterns_are_named(four: Path, capsys, pattern: str, expected: str) -> None:
    """One line says what is wrong with a pattern."""
    assert build(["--pattern", pattern, *SMALL]) == 2
    assert expected in capsys.readouterr().err


def test_a_label_that_takes_no_part_is_none(four: Path) -> None:
    """A recording of whose label the pattern says nothing is left out; its folder is no label then."""
    corpus = read_corpus(BuildOptions(pattern=r"(?:(?P<label>[ab])|.)\.wav"))
    assert corpus.clips["label"].tolist() == [b"a", b"b"]
    assert corpus.notes[0] == "left out: 2 recordings outside --pattern, such as c.wav"


def test_labels_that_are_lists_and_long_parts_are_said(four: Path, capsys) -> None:
    """Several labels in one cell make a label of their own, and a part that is longer than a clip loses its rest."""
    for n in range(6):
        soundfile.write(f"data/audio/{n}.wav", sound(n, 1, 16000, np.random.default_rng(n)), 16000)
    flags = ["--manifest", "t.csv", "--clip-seconds", "0.3", "--folds", "2", "--group-by", "none", *SMALL]
    for seconds, long in ((0.9, True), (0.3, False)):
        rows = [(f"{n}.wav", label, 0.05, 0.05 + seconds) for n, label in enumerate(("x", "y", "x,y") * 2)]
        write_table(Path("t.csv"), "file,label,start_s,end_s", rows)
        assert build([*flags, "--cache-dir", f"data/{seconds}"]) == 0
        output = capsys.readouterr().out
        assert "labels that are lists of others: 1, such as 'x,y'; each is one of its own" in output
        assert ("6 of 6 recordings last 0.9 s; kept: the loudest 0.3 s" in output) is long


def test_copies_below_any_folder_of_a_table_are_named(four: Path, capsys) -> None:
    """What a table names is a clip, also where a folder per label has background."""
    (four / "data/audio/_background_noise_").mkdir()
    (four / "data/audio/_background_noise_/e.wav").write_bytes((four / "data/audio/a.wav").read_bytes())
    Path("t.csv").write_text(TABLE + "e.wav,y,s2,2\n")
    assert build(["--manifest", "t.csv", *SMALL]) == 0
    assert (
        "copies on another side of the given split, so that its figures are too high: 1, such as"
        in capsys.readouterr().out
    )


def test_words_for_missing_values_are_said(four: Path) -> None:
    """A cell of nan may be a word or a fault, which the owner of the table knows."""
    Path("t.csv").write_text(TABLE.replace("x,s2", "NaN,s2").replace("y,s2", "None,n/a"))
    notes = read_corpus(BuildOptions(manifest="t.csv")).notes
    assert "t.csv, line 4, column label: 'NaN' may mean that nothing is known; taken as it is (rows: 2)" in notes
    assert "t.csv, line 5, column speaker: 'n/a' may mean that nothing is known; taken as it is (rows: 1)" in notes
    Path("t.csv").write_text(TABLE)
    assert not any("nothing is known" in note for note in read_corpus(BuildOptions(manifest="t.csv")).notes)


def test_what_looks_like_speakers_or_splits_is_said(here: Path, capsys) -> None:
    """Folders below a label, and labels called train and test, are met with the pattern that takes them."""
    rng = np.random.default_rng(4)
    for split in ("train", "test"):
        for label in ("no", "yes"):
            for speaker in ("anna", "ben"):
                folder = here / "data/audio" / split / label
                folder.mkdir(parents=True, exist_ok=True)
                soundfile.write(folder / f"{speaker}{split}.wav", sound(0, 1, 16000, rng), 16000)
    assert build(["--folds", "2", *SMALL]) == 0
    output = capsys.readouterr().out
    pattern = "(?P<split>[^/]+)/(?P<label>[^/]+)/"
    assert f"the labels are test, train: if these are splits, build with --pattern '{pattern}'" in output
    assert "if the folders below a label are speakers (test/no/annatest.wav), build with --pattern" in output
    assert build(["--pattern", pattern, "--folds", "2", *SMALL]) == 0
    cache = built()
    assert cache.classes == ["no", "yes"]
    assert (cache.clips["split"] == TEST).sum() == 4


def test_copies_and_cancelling_channels_are_named(here: Path, capsys) -> None:
    """Recordings with one content share a fold, or are named where they have two labels; so is stereo that cancels."""
    rng = np.random.default_rng(6)
    for label in ("no", "yes"):
        (here / "data/audio" / label).mkdir(parents=True)
        for number in range(6):
            soundfile.write(here / f"data/audio/{label}/{number}.wav", sound(0, 1, 16000, rng), 16000)
    audio = here / "data/audio"
    (audio / "no/copy.wav").write_bytes((audio / "no/0.wav").read_bytes())
    (audio / "yes/copy.wav").write_bytes((audio / "no/1.wav").read_bytes())
    both = sound(1, 1, 16000, rng)
    late = np.concatenate([np.zeros(16000, np.float32), sound(1, 1, 16000, rng)])
    for label in ("no", "yes"):
        soundfile.write(audio / label / "late.wav", late, 16000)
    parts = ["--long", "split", "--folds", "2", "--cache-dir", "parts", *SMALL]
    assert build(parts) == 0
    assert (
        "such as no/1.wav (no) = yes/copy.wav (yes); no/late.wav (no) = yes/late.wav (yes)" in capsys.readouterr().out
    )
    for label in ("no", "yes"):
        (audio / label / "late.wav").unlink()
    soundfile.write(audio / "yes/stereo.wav", np.stack([both, -both], axis=1), 16000)
    (audio / "yes/._0.wav").write_bytes(b"Mac OS X")
    (audio / "song.m4a").write_bytes(b"m4a")
    assert build(["--folds", "3", *SMALL]) == 0
    output = capsys.readouterr().out
    assert "recordings that are copies of others, with which they share a fold: 2, see data/cache/" in output
    assert "recordings under two labels: 1, such as no/1.wav (no) = yes/copy.wav (yes)" in output
    assert "recordings whose channels cancel to silence: 1, such as yes/stereo.wav" in output
    assert "ignored files that are no recordings: 1 .*, 1 .m4a" in output
    assert "ffmpeg -i x.m4a x.flac" in output
    cache = built()
    fold = {clip["clip_id"].decode(): clip["fold"] for clip in cache.clips}
    assert fold["no/copy.wav"] == fold["no/0.wav"]
    assert fold["yes/copy.wav"] == fold["no/1.wav"]
    table = (cache.folder / "copies.csv").read_text().splitlines()
    assert table == ["file,label,same_as,its_label", "no/copy.wav,no,no/0.wav,no", "yes/copy.wav,yes,no/1.wav,no"]
    assert build(["--folds", "3", *SMALL]) == 0
    assert built().clips["fold"].tolist() == cache.clips["fold"].tolist()
    (audio / "testing_list.txt").write_text("no/copy.wav\nyes/0.wav\n")
    capsys.readouterr()
    assert build(["--folds", "3", *SMALL]) == 0
    output = capsys.readouterr().out
    assert "share a fold" not in output
    assert "copies on another side of the given split, so that its figures are too high: 1, such as" in output
    assert "such as no/0.wav (no) = no/copy.wav (no)\n" in output


def test_wake_words(here: Path, capsys) -> None:
    """--keep and --silence give labels "unknown" and "silence", over speakers and over stretches of background."""
    rng = np.random.default_rng(7)
    for at, label in enumerate(("up", "down", "bed", "cat", "wow")):
        (here / "data/audio" / label).mkdir(parents=True)
        for number in range(12):
            name = f"{number % 6:08x}_nohash_{number // 6}.wav"
            soundfile.write(here / "data/audio" / label / name, sound(at, 1, 16000, rng), 16000)
    noise = here / "data/audio/_background_noise_"
    (noise / "outdoors").mkdir(parents=True)
    for name in ("tap", "outdoors/rain"):
        soundfile.write(noise / f"{name}.wav", sound(1, 20, 16000, rng), 16000)
    flags = ["--keep", "up, down", "--silence", "10", "--folds", "2", *SMALL]
    assert build(["--keep", "up,dwon", *SMALL]) == 2
    assert "--keep: no label 'dwon'; the corpus has bed, cat, down, up, wow" in capsys.readouterr().err
    assert build(flags) == 0
    assert "unknown: 12 of 36 clips of other labels" in capsys.readouterr().out
    cache = built()
    assert cache.classes == ["down", "silence", "unknown", "up"]
    unknown = cache.clips[cache.clips["target"] == 2]
    assert np.unique(unknown["speaker"], return_counts=True)[1].tolist() == [2] * 6
    ends: dict[tuple, list] = {}
    for clip in cache.clips[cache.clips["target"] == 1]:
        file, part = split_clip_id(clip["clip_id"].decode())
        assert -40 <= part.gain_db < 0
        ends.setdefault((file, int(clip["fold"])), []).extend([part.start_s, part.end_s])
    assert {file for file, _ in ends} == {"_background_noise_/outdoors/rain.wav", "_background_noise_/tap.wav"}
    for file in {file for file, _ in ends}:
        assert max(ends.get((file, 0), [0])) <= 10 <= min(ends.get((file, 1), [20]))
    quiet = read_clip(f"data/audio/{file}{Part(3, 4, -20.0)}", FeatureConfig()).samples
    assert np.allclose(quiet * 10, read_clip(f"data/audio/{file}{Part(3, 4)}", FeatureConfig()).samples, atol=1e-6)
    assert build(flags) == 0
    assert "built 0 clips" in capsys.readouterr().out
    assert build(["--silence", "10", "--folds", "30", *SMALL]) == 2
    assert "the background recordings are too short to give each of 30 folds" in capsys.readouterr().err
    assert build(["--silence", "10", "--seed", "-1", *SMALL]) == 2
    assert "--seed" in capsys.readouterr().err
    (here / "data/audio/up").rename(here / "data/audio/cafe\u0301")
    (here / "data/audio/bed").rename(here / "data/audio/silence")
    assert build(["--keep", "caf\u00e9,down", "--cache-dir", "kept", *SMALL]) == 0
    assert "unknown: " in capsys.readouterr().out
    assert build(["--silence", "10", "--cache-dir", "other", *SMALL]) == 2
    assert "--silence: the corpus has a label silence already" in capsys.readouterr().err


def test_unknown_is_as_frequent_as_its_share_says(here: Path, capsys) -> None:
    """Of clips that are cut from longer recordings, on each side of a split, and with a label named twice."""
    rng = np.random.default_rng(7)
    for at, label in enumerate(("up", "bed", "cat")):
        (here / "data/audio" / label).mkdir(parents=True)
        for number in range(8):
            sounds = sound(at, 3 if label == "cat" else 1, 16000, rng)
            soundfile.write(here / f"data/audio/{label}/{number}.wav", sounds, 16000)
    tested = [f"{label}/{number}.wav" for label in ("up", "bed", "cat") for number in (3, 4)]
    (here / "data/audio/testing_list.txt").write_text("\n".join(tested))
    assert build(["--keep", "up,up", "--long", "split", "--folds", "2", *SMALL]) == 0
    assert "testing_list.txt: 6 lines, 6 clips before --keep\n" in capsys.readouterr().out
    cache = built()
    assert cache.classes == ["unknown", "up"]
    for side, clips in ((TEST, 2), (1 - TEST, 6)):
        targets = cache.clips["target"][cache.clips["split"] == side]
        assert np.bincount(targets).tolist() == [clips, clips]


def test_what_is_empty_is_not_left_out(here: Path) -> None:
    """A variable of the shell that is not set does not mean all labels."""
    for name in ("keep", "manifest", "pattern", "columns", "negatives"):
        with pytest.raises(InputError, match=f"--{name} is empty"):
            BuildOptions(**{name: ""})
    with pytest.raises(InputError, match="--width 0; expected 1 or more"):
        BuildOptions(width=0)


def test_a_task_that_was_changed_is_typed_again_as_it_was() -> None:
    """The command that cache.info shows does not bring back what was switched off."""
    task = {**TASKS["v1-12"], "task": "v1-12", "silence": 0, "split": "kfold", "keep": "-x,a"}
    assert BuildOptions(**task).command == "python -m pipeline.build_cache --keep=-x,a"


def test_the_published_task(here: Path) -> None:
    """--task sets what the 12-label task uses; explicit flags win."""
    from pipeline.options import TASKS, BuildOptions

    options = BuildOptions(**TASKS["v1-12"])
    assert (options.split, options.silence, len(options.keep.split(","))) == ("official", 2300, 10)
    assert build(["--task", "v1-12", *SMALL]) == 2  # there is no corpus


@pytest.mark.parametrize(
    ("suffix", "container", "subtype", "rate"),
    [
        (".mp3", "MP3", "MPEG_LAYER_III", 32000),
        (".opus", "OGG", "OPUS", 48000),
        (".OGA", "OGG", "VORBIS", 32000),
        (".aiff", "AIFF", "PCM_24", 44100),
        (".caf", "CAF", "PCM_16", 44100),
        (".au", "AU", "ULAW", 8000),
        (".w64", "W64", "PCM_16", 22050),
        (".WAV", "RF64", "DOUBLE", 16000),
        (".wav", "WAV", "GSM610", 8000),
        (".wav", "WAVEX", "PCM_32", 96000),
        (".wav", "WAV", "IMA_ADPCM", 16000),
        (".flac", "WAV", "ALAW", 8000),
    ],
)
def test_formats_and_their_parts(tmp_path: Path, suffix: str, container: str, subtype: str, rate: int) -> None:
    """Whatever libsndfile decodes is listed, and a part of it is what stands there in the whole."""
    path = tmp_path / "x" / f"a{suffix}"
    path.parent.mkdir()
    soundfile.write(path, sound(1, 4, rate, np.random.default_rng(8)), rate, format=container, subtype=subtype)
    from pipeline.scan import scan_corpus

    assert scan_corpus(tmp_path)[0]["clip_id"].tolist() == [f"x/a{suffix}".encode()]
    whole, found = read_recording(str(path))
    config = FeatureConfig(sample_rate=found, fmax=found / 2)
    part = read_clip(f"{path}#t=1.5,2.5", config)
    first = round(1.5 * rate)
    assert np.allclose(part.samples, whole[first : first + rate], atol=1e-6)
    assert (part.padded, part.cropped) == (False, False)
    assert read_clip(f"{path}#t=3.5", config).padded
    with pytest.raises(InputError, match="the part #t=9,10 is not within the recording"):
        read_clip(f"{path}#t=9,10", config)


@pytest.mark.parametrize("rate", [16000, 48000])
def test_parts_of_mp3_with_varying_bit_rate(tmp_path: Path, rate: int) -> None:
    """Their packets lean on those before them: each part is what stands there in the whole nevertheless."""
    path, rng = tmp_path / "a.mp3", np.random.default_rng(8)
    samples = np.concatenate([sound(n % 4, 1, rate, rng) * (n % 3) for n in range(12)])
    settings = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "VARIABLE", "compression_level": 0.5}
    with soundfile.SoundFile(path, "w", rate, 1, **settings) as file:
        file.write(samples)
    whole, _ = read_recording(str(path))
    config = FeatureConfig(sample_rate=rate, fmax=rate / 2)
    for start in np.arange(0, 10.5, 0.3).round(1):
        first = round(start * rate)
        part = read_clip(f"{path}#t={start},{start + 1:.1f}", config).samples
        assert np.abs(part - whole[first : first + rate]).max() < 1e-4, start


def test_clip_ids() -> None:
    """Names say which part they are, and come back as they were."""
    for name in ("a/b.wav", "a/b.wav#t=0,1", "a#t=2/b.wav", "é.mp3#t=0.333333", "n.wav#t=7.25,8.25&gain_db=-12.5"):
        file, part = split_clip_id(name)
        assert file + str(part or "") == name
    assert split_clip_id("a.wav#t=1,2")[1] == Part(1, 2)
    assert file_of("a#t=2/b.wav") == "a#t=2/b.wav"
    assert len(LABELS) == 4


def test_parts_that_overlap_are_not_cut_alike(four: Path, capsys) -> None:
    """Rows whose parts share clips under --long split are refused; without it each row is one clip."""
    rows = [
        (f"{name}.wav", label, start, start + 0.6)
        for name, label in zip("abcd", "xyxy", strict=True)
        for start in (0, 0.2)
    ]
    write_table(Path("t.csv"), "file,label,start_s,end_s", rows)
    flags = ["--manifest", "t.csv", "--clip-seconds", "0.2", "--folds", "2", *SMALL]
    assert build([*flags, "--long", "split"]) == 2
    assert (
        "data/audio: clips that come twice: 8, such as a.wav#t=0.2,0.4: parts that overlap" in capsys.readouterr().err
    )
    assert build(flags) == 0


@pytest.mark.parametrize("name", ["x.aiff", "x.au", "x.w64", "x.rf64", "x.flac", "x.wav", "x.ogg"])
def test_cut_recordings_are_refused(tmp_path: Path, name: str) -> None:
    """Whatever the container, a file that ends before its header says is none."""
    soundfile.write(tmp_path / name, sound(1, 1, 16000, np.random.default_rng(0)), 16000)
    read_clip(str(tmp_path / name), FeatureConfig())
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError):
        read_clip(str(tmp_path / name), FeatureConfig())


def test_a_flac_that_does_not_say_how_long_it_is(four: Path, capsys) -> None:
    """As encoders write to pipes: refused with the way to mend it, and no reason for a build to end."""
    soundfile.write("data/audio/e.flac", sound(1, 3, 16000, np.random.default_rng(0)), 16000)
    data = bytearray(Path("data/audio/e.flac").read_bytes())
    data[21] &= 0xF0  # the lowest of 36 bits that tell the samples, behind "fLaC" and the head of STREAMINFO
    data[22:26] = bytes(4)
    Path("data/audio/e.flac").write_bytes(data)
    write_table(Path("t.csv"), "file,label", [(name, label) for name, label in zip("abcde", "xyxyx", strict=True)])
    assert build(["--manifest", "t.csv", "--long", "split", "--folds", "2", *SMALL]) == 1
    assert "does not say how long it is; write it anew" in (only_cache(Path("data/cache")) / "rejected.csv").read_text()


def test_labels_that_look_alike_or_share_parts_are_said(four: Path, capsys) -> None:
    """Yes and yes are two labels, as are two lists of labels; the build says that it took them so."""
    rows = [(f"{n}.wav", label, f"s{n}") for n, label in enumerate(("Yes", "yes", "Bark,Dog", "Dog,Cat") * 2)]
    for n in range(8):
        soundfile.write(f"data/audio/{n}.wav", sound(n, 1, 16000, np.random.default_rng(n)), 16000)
    write_table(Path("t.csv"), "file,label,speaker_id", rows)
    assert build(["--manifest", "t.csv", "--columns", "speaker=speaker_id", "--folds", "2", *SMALL]) == 0
    output = capsys.readouterr().out
    assert "labels that differ in capitals only: Yes, yes; each is one of its own" in output
    assert "labels that are lists of others: 2, such as 'Bark,Dog'; each is one of its own" in output
    assert "group from speaker_id" in output


def test_few_recordings_are_told_more_epochs(four: Path, capsys) -> None:
    """A recipe for tens of thousands ends before a model of ten knows anything."""
    flags = ["--n-mels", "32", "--width", "64", "--num-views", "1", "--jobs", "1"]
    Path("t.csv").write_text(TABLE)
    assert build(["--manifest", "t.csv", *flags]) == 0
    assert "next: python -m train.run --fold 0 --recipe fast --epochs 100\n" in capsys.readouterr().out
