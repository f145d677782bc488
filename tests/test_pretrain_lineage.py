"""What weights descend from: recorded when a run begins, kept over stages and starts, handed on with every export; and
a licence that nobody states is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from helpers.tiny_run import CONFIG, SHORT, stop_after_every_step

from meddap import cli
from meddap.disk import file_sha256
from pretrain import export, train
from pretrain.runtime import checkpoint
from pretrain.weights import lineage, published
from pretrain.weights.published import WeightsError

WORDS = ("stages.adapt.steps=2", "stages.second.steps=1", "model.layer_scale=1e-5", *SHORT)


@pytest.fixture
def trained(tiny_dataset, tmp_path: Path):
    """Train a tiny run: trained(name, *words) returns its folder."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    shards = tiny_dataset()

    def make(name: str, *words: str) -> Path:
        own = [f"output={tmp_path}", f"name={name}", f"data.root={shards}", *WORDS, *words]
        assert train.main(["--config", str(tmp_path / "c.yaml"), *own]) == 0
        return tmp_path / name

    return make


def hand_out(run: Path, output: Path, *words: str, kind: str = "huggingface") -> int:
    return export.main(["--checkpoint", str(run), "--format", kind, "--output", str(output), *words])


def front(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def foreign(run: Path, output: Path) -> Path:
    """Weights of others: the run's, without what our export says beside them."""
    assert hand_out(run, output) == 0
    config = json.loads((output / "config.json").read_text())
    (output / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != "meddap"}))
    (output / "README.md").unlink()
    return output


def test_weights_of_others_are_handed_on_under_a_named_licence_alone(trained, tmp_path: Path, capsys) -> None:
    """Refused in one line without; the card, config.json and the chain have what is named; kills lose nothing of it."""
    start = foreign(trained("first"), tmp_path / "dinov3-vits16")
    run = trained("next", f"stages.adapt.init_from={start}")
    capsys.readouterr()
    assert hand_out(run, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "error: dinov3-vits16: these weights began from it, and nothing states its licence; DINOv3's"
    )
    assert "--license NAME" in said and said.count("\n") == 1 and not (tmp_path / "out").exists()
    assert hand_out(run, tmp_path / "out", "--license", "dinov3-license") == 0
    assert "licence dinov3-license: These weights descend from" in capsys.readouterr().err
    said = front(tmp_path / "out")
    assert (said["license"], said["license_name"], said["base_model"]) == ("other", "dinov3-license", "dinov3-vits16")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "publications say that DINOv3 was used" in card and "next/second/00000001" in card
    assert file_sha256(start / "model.safetensors")[:16] in card and str(tmp_path) not in card
    assert str(tmp_path) not in (run / "second" / "00000001" / "state.json").read_text().split('"recipe"')[0]


@pytest.mark.parametrize("stated", ["license: mit", "license: other\nlicense_name: my-own-terms"])
def test_a_model_cards_licence_is_handed_on(stated: str, trained, tmp_path: Path) -> None:
    """What the card beside the weights states needs no flag, and another one that is named wins."""
    start = foreign(trained("first"), tmp_path / "models--org--small" / "snapshots" / "abc")
    (start / "README.md").write_text(f"---\n{stated}\n---\nwords\n")
    run = trained("next", f"stages.adapt.init_from={start}")
    assert hand_out(run, tmp_path / "out") == 0
    said = front(tmp_path / "out")
    assert said["base_model"] == "org/small"
    assert said.get("license_name", said["license"]) == stated.split(": ")[-1]
    assert hand_out(run, tmp_path / "other", "--license", "Apache-2.0") == 0
    assert front(tmp_path / "other")["license"] == "apache-2.0"


@pytest.mark.parametrize("name", ["", "  ", "mine\n---\n# Bad", "a\u0085b", "a\tb", "\udcff"])
def test_a_licence_is_a_line_of_text(name: str) -> None:
    """What is no line would go on in the card, outside its front matter."""
    with pytest.raises(WeightsError, match="--license .*: give the licence's name in one line"):
        lineage.to_name([], name)


def test_the_lineage_of_nothing_is_one_line(tmp_path: Path, capsys) -> None:
    """A mistyped name is an error that says so."""
    assert cli.main(["export", "--checkpoint", str(tmp_path / "gone"), "--show-lineage"]) == 1
    said = capsys.readouterr().err
    assert said.endswith("gone: not found; name a run, a file of weights or a folder with config.json\n")
    assert said.count("\n") == 1


def test_the_front_matter_is_yaml_whatever_weights_are_called() -> None:
    """Names of files and licences of others come back as they were, and add no key."""
    for odd in [
        'a "b": c',
        "x\nlicense: mit",
        "---",
        "# c",
        "é 😀",
        "d\u0085e",
        "f\x7fg",
        "h\u2028i",
        "!!python/name:os",
    ]:
        chain = [lineage.Link("published", odd, license=odd)]
        lines = "\n".join(lineage.front_matter(chain, lineage.stated_license(chain)))
        assert lines.count("\n") == 2
        assert yaml.safe_load(lines) == {"license": "other", "license_name": odd, "base_model": odd}


def test_a_card_keeps_its_form_whatever_the_licence_of_the_data(trained, tmp_path: Path, capsys) -> None:
    """Licences that others stated, in shards or model cards, stay within their line and cell; another name is said."""
    start = foreign(trained("first"), tmp_path / "start")
    (start / "README.md").write_text('---\nlicense: other\nlicense_name: "a|b\\n# Bad"\n---\n')
    dataset = json.loads((tmp_path / "data" / "dataset.json").read_text())
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({**dataset, "license": "c|d\n\n# Worse"}))
    run = trained("next", f"stages.adapt.init_from={start}")
    capsys.readouterr()
    assert hand_out(run, tmp_path / "out", "--license", "mit") == 0
    said = capsys.readouterr().err
    assert "warning: licence mit, as --license says; the weights that these began from state a|b # Bad" in said
    lines = (tmp_path / "out" / "README.md").read_text().splitlines()
    assert not [line for line in lines if line.startswith(("# Bad", "# Worse"))]
    assert any(line.endswith("| a\\|b # Bad |") for line in lines)
    assert any("licensed as c\\|d # Worse; patients" in line for line in lines)


def test_the_chain_goes_on_over_exports_of_every_kind(trained, tmp_path: Path, capsys) -> None:
    """Run → folder → run → file → run: five links in their order, each with the digest of its file."""
    first = trained("first")
    assert hand_out(first, tmp_path / "folder", "--license", "cc-by-4.0") == 0
    second = trained("second", f"stages.adapt.init_from={tmp_path / 'folder'}")
    assert hand_out(second, tmp_path / "file.pth", kind="dinov3") == 0
    third = trained("third", f"stages.second.init_from={tmp_path / 'file.pth'}")
    capsys.readouterr()
    assert cli.main(["export", "--checkpoint", str(third), "--show-lineage"]) == 0
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    names = ["first/second/00000001", "folder", "second/second/00000001", "file.pth", "third/second/00000001"]
    assert rows == [[kind, name] for kind, name in zip(("run", "export", "run", "export", "run"), names)]
    chain = lineage.of_weights(third)
    assert chain[1].sha256 == file_sha256(tmp_path / "folder" / "model.safetensors")
    assert chain[3].sha256 == file_sha256(tmp_path / "file.pth")
    assert [link.license for link in chain] == ["", "cc-by-4.0", "", "cc-by-4.0", ""]
    assert all(link.data[""]["digest"] for link in chain if link.kind == "run")
    assert hand_out(third, tmp_path / "end") == 0 and front(tmp_path / "end")["license"] == "cc-by-4.0"


def test_weights_from_nothing_need_no_licence(trained, tmp_path: Path) -> None:
    """Nor do those that begin from such an export; one that is given is in the card."""
    first = trained("first")
    assert hand_out(first, tmp_path / "none") == 0
    assert "license" not in front(tmp_path / "none") and "base_model" not in front(tmp_path / "none")
    assert "Nobody has named a licence for these weights yet." in (tmp_path / "none" / "README.md").read_text()
    second = trained("second", f"stages.adapt.init_from={tmp_path / 'none'}")
    assert hand_out(second, tmp_path / "mine", "--license", "mit") == 0 and front(tmp_path / "mine")["license"] == "mit"


def test_killed_runs_keep_their_chain(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies after every step, its start moved away meanwhile, ends with the chain of one that does not."""
    start = foreign(trained("first"), tmp_path / "start")
    calm = lineage.of_weights(trained("calm", f"stages.adapt.init_from={start}"))
    words = [f"output={tmp_path}", "name=calmer", f"data.root={tmp_path / 'data'}", *WORDS, "save.every=1"]
    words = ["--config", str(tmp_path / "c.yaml"), *words, f"stages.adapt.init_from={start}"]
    assert stop_after_every_step(lambda: train.main(words), monkeypatch) == 3
    assert lineage.of_weights(tmp_path / "calmer")[:-1] == calm[:-1] != []


def test_runs_older_than_the_record_name_their_start(trained, tmp_path: Path) -> None:
    """Its name from the configuration, no digest, and a licence has to be given."""
    start = foreign(trained("first"), tmp_path / "start")
    run = trained("old", f"stages.adapt.init_from={start}")
    for path in run.glob("*/0*/state.json"):
        state = json.loads(path.read_text())
        del state["began"]
        path.write_text(json.dumps(state))
    chain = lineage.of_weights(run)
    assert [(link.kind, link.name, link.sha256) for link in chain[:1]] == [("published", "start", "")]
    with pytest.raises(WeightsError, match="nothing states its licence"):
        lineage.to_name(chain, None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lineage": {}}, "lineage is not a list"),
        ({"lineage": [{"kind": "run"}]}, "has no 'name'"),
        ({"license": 3}, "license is not"),
    ],
)
def test_a_damaged_chain_is_one_line(change: dict, says: str, trained, tmp_path: Path) -> None:
    """The file, what is wrong with it, and what to do."""
    assert hand_out(trained("first"), tmp_path / "out") == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["meddap"] |= change
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=says):
        lineage.of_weights(tmp_path / "out")


def test_sharded_files_have_one_digest(tmp_path: Path) -> None:
    """Of several files of one model, over the digests of each, by name."""
    weights = {"a.safetensors": {"x": torch.zeros(2)}, "b.safetensors": {"y": torch.ones(3)}}
    from safetensors.torch import save_file

    for name, tensors in weights.items():
        save_file(tensors, tmp_path / name)
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [path.name for path in published.files(tmp_path)] == ["a.safetensors", "b.safetensors"]


def test_the_choice_of_a_run_starts_another(trained, tmp_path: Path) -> None:
    """`init_from: RUN:chosen` begins from what was chosen, and the chain names that step."""
    from pretrain.weights import chosen

    run = trained("first", "save.every=1", "save.keep_every=1")
    chosen.write(run, checkpoint.read(run / "adapt" / "00000001"), {"rule": "", "beats_start": True, "tasks": []})
    second = trained("second", f"stages.adapt.init_from={run}:chosen")
    assert [link.name for link in lineage.of_weights(second)][0] == "first/adapt/00000001"
