"""The verbs one after another, as a user types them."""

import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from leanvit.measure import Comparison
from leanvit.recipe import load_run
from leanvit.runs.commands import commands_of
from leanvit.runs.disagreements import load_pictures, worst
from leanvit.runs.evidence import Evidence
from leanvit.runs.layout import evidence_file, pictures_file
from leanvit.runs.measurements import pairs
from leanvit.runs.token_maps import TokenMaps

pytestmark = pytest.mark.e2e

VERBS = ["train", "compress", "export", "measure", "report"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_works_and_prints_only_json(chain, verb: str) -> None:
    result = chain.results[verb]
    assert result.exit_code == 0, result.output
    assert isinstance(json.loads(result.stdout), dict)


def test_train_says_what_was_adapted_and_saves_a_dense_run(chain) -> None:
    assert (
        "adapted vit_tiny_patch16_224 to digits: num_classes=10, in_chans=1, img_size=8"
        in chain.results["train"].stderr
    )
    run = load_run(chain.folder / "dense")
    assert run.model.history.plans == ()
    assert run.classes == tuple("0123456789")
    assert run.preprocess is not None and run.preprocess.input_size == (1, 8, 8)


def test_compress_saves_the_plans_in_order_and_measures_every_step(chain) -> None:
    slim = chain.folder / "slim"
    assert [plan.slug for plan in load_run(slim).model.history.plans] == ["evit", "int8"]
    comparison = Comparison.from_json((slim / "measure.json").read_bytes())
    assert [row.name for row in comparison.rows] == ["dense", "+ evit", "+ recovery", "+ int8"]
    macs = [row.macs_per_image for row in comparison.rows]
    assert macs[1] < macs[0], "fewer tokens take fewer MACs"
    payload = json.loads(chain.results["compress"].stdout)
    assert [row["method"] for row in payload["asked"]] == ["evit", "int8"]
    assert payload["asked"][0]["asked"]["keep_rate"] == 0.6
    assert payload["asked"][1]["achieved"]["weight_bits"] == 8


def test_compress_traces_tokens(chain) -> None:
    maps = TokenMaps.from_json((chain.folder / "slim" / "tokens.json").read_bytes())
    assert maps.grid == (8, 8) and maps.num_prefix == 1
    assert maps.tokens == (65, 41, 41)  # 64 patches: ceil(0.6 x 64) stay, one holds the fused, one is the class token
    (reduction,) = maps.reductions
    assert (reduction.block, reduction.source, reduction.tokens) == (1, "evit", 41)
    for owners in reduction.owners:
        assert sorted(owners.count(token) for token in set(owners)) == [1] * 39 + [25]


def test_measure_has_a_row_for_each_model_and_runtime(chain) -> None:
    payload = json.loads(chain.results["measure"].stdout)
    names = [row["name"] for row in payload["comparison"]["rows"]]
    assert names == ["dense", "evit + int8", "dense (openvino)", "evit + int8 (openvino)"]
    assert payload["file"].endswith("measure-2.json"), "the measurement that compress made is not replaced"
    by_name = {row["name"]: row for row in payload["comparison"]["rows"]}
    assert by_name["evit + int8 (openvino)"]["precision"] == "int8"
    assert by_name["evit + int8"]["precision"] == "int8 simulated"
    assert by_name["dense"]["disk_bytes"] > 0


def test_tables_have_five_columns_unless_they_are_wide(invoke) -> None:
    args = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 10, "depth": 1, "embed_dim": 24}
    model = [word for key, value in args.items() for word in ("--model-arg", f"{key}={value}")]
    given = ("measure", "vit_tiny_patch16_224", *model, "--data", "digits", "--limit", "20", "--rounds", "3")
    short, wide = invoke(*given).stdout, invoke(*given, "--wide").stdout
    assert "latency [ms]" in short and "params" not in short
    assert "params" in wide and "throughput" in wide and "[ms/batch" in wide


def test_compress_tells_each_methods_own_share(chain) -> None:
    evit, int8 = json.loads(chain.results["compress"].stdout)["asked"]
    assert 0 < evit["share"]["macs"] == evit["share"]["macs_total"] < 1
    assert int8["share"]["macs"] == 1 and int8["share"]["macs_total"] == evit["share"]["macs_total"]


def test_verbs_keep_what_the_report_shows(chain) -> None:
    slim = chain.folder / "slim"
    for measured, rows in (("measure.json", 4), ("measure-2.json", 4)):
        comparison = Comparison.from_json((slim / measured).read_bytes())
        evidence = Evidence.load(evidence_file(slim / measured))
        assert list(evidence.answers) == [row.name for row in comparison.rows] and len(evidence.answers) == rows
        for row in comparison.rows:
            assert 100 * evidence.right(row.name).mean() == pytest.approx(row.score.value)
        shown = {d.key for dense, lean in pairs(comparison) for d in worst(evidence, dense, lean)}
        assert set(load_pictures(pictures_file(slim / measured))) == shown
    assert (slim / "train.jsonl").read_text().startswith('{"event": "start"'), "the recovery's course"
    page = (slim / "report.html").read_text()
    assert "From which answer to which" in page and "validation accuracy by epoch" in page
    assert "not kept" not in page[: page.index('id="figures"')]


def test_compress_needs_no_training_split_where_nothing_learns(chain, invoke, tmp_path) -> None:
    for name, value in (("a", 0), ("b", 255)):
        folder = tmp_path / "photos" / "val" / name
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (32, 32), (value, 9 * number, 0)).save(folder / f"{number}.png")
    model = ["--model-arg", "img_size=32", "--model-arg", "num_classes=2", "--model-arg", "depth=2"]
    arguments = [
        "compress",
        "vit_tiny_patch16_224",
        "--data",
        tmp_path / "photos",
        *model,
        "--batch",
        "2",
        "--no-measure",
    ]
    done = invoke(*arguments, "--with", "tome:r=1", "--out", tmp_path / "lean", "--json")
    assert done.exit_code == 0, done.output
    assert load_run(tmp_path / "lean").classes == ("a", "b")
    refused = invoke(*arguments, "--with", "int8", "--out", tmp_path / "int8")
    assert refused.exit_code == 2 and "no training split" in refused.stderr


def test_every_command_is_recorded_with_those_before_it(chain) -> None:
    assert [c.verb for c in commands_of(chain.folder / "dense")] == ["train"]
    assert [c.verb for c in commands_of(chain.folder / "slim")] == ["train", "compress", "export", "measure"]


def test_nothing_is_replaced_unasked(chain, invoke) -> None:
    before = (chain.folder / "slim" / "leanvit.json").read_bytes()
    for again in (
        ["compress", chain.folder / "dense", "--data", "digits", "--limit", "20", "--with", "evit"],
        ["train", "vit_tiny_patch16_224", "--data", "digits", "--limit", "20", "--adapt"],
    ):
        result = invoke(*again, "--out", chain.folder / "slim")
        assert result.exit_code == 2 and "--overwrite" in result.stderr, result.output
    assert invoke("export", chain.folder / "slim").exit_code == 2
    assert (chain.folder / "slim" / "leanvit.json").read_bytes() == before


def test_a_second_report_gets_a_name_of_its_own(chain, invoke) -> None:
    assert invoke("report", chain.folder / "slim").stdout.strip().endswith("report-2.html")


def test_a_lean_run_is_not_trained_as_dense(chain, invoke) -> None:
    result = invoke("train", chain.folder / "slim", "--data", "digits", "--limit", "20", "--out", chain.folder / "no")
    assert result.exit_code == 2
    assert "compress --recover" in result.stderr


def test_model_arguments_do_not_go_with_a_run(chain, invoke) -> None:
    result = invoke("export", chain.folder / "slim", "--model-arg", "depth=2")
    assert result.exit_code == 2
    assert "only be given with a timm name" in result.stderr


def test_a_model_is_not_compared_with_itself(chain, invoke) -> None:
    dense = chain.folder / "dense"
    result = invoke("measure", dense, "--against", dense, "--data", "digits", "--limit", "20")
    assert result.exit_code == 2
    assert "given twice" in result.stderr


def test_a_recipe_file_replaces_the_options(chain, invoke) -> None:
    recipe = chain.folder / "slim.toml"
    recipe.write_text(
        f'model = "{chain.folder / "dense"}"\ndata = "digits"\nout = "{chain.folder / "from-recipe"}"\n'
        '[[method]]\nslug = "tome"\nr = 4\n'
    )
    result = invoke("compress", "--recipe", recipe, "--limit", "20", "--no-measure", "--json")
    assert result.exit_code == 0, result.output
    (plan,) = load_run(chain.folder / "from-recipe").model.history.plans
    assert (plan.slug, plan.knobs["r"]) == ("tome", 4)


def test_a_recipe_file_and_with_are_not_mixed(chain, invoke) -> None:
    result = invoke("compress", "--recipe", "x.toml", "--with", "evit")
    assert result.exit_code == 2 and "leave --with out" in result.stderr


def test_weights_of_a_timm_name_are_checked(chain, invoke) -> None:
    weights = next((chain.folder / "dense").glob("*.safetensors"))
    result = invoke("export", "vit_tiny_patch16_224", "--weights", weights, "--out", chain.folder / "w")
    assert result.exit_code == 1
    assert "does not fit" in result.stderr


def test_convert_trains_and_measures_what_must_be_enlarged(chain, invoke) -> None:
    """Fourfold: refused without --convert (the table of wrong calls), and kept up by recovery and measurement."""
    size = ["--model-arg", "img_size=32", "--model-arg", "patch_size=8", "--model-arg", "depth=1"]
    small = ["--model-arg", "embed_dim=12", "--model-arg", "num_heads=1", "--model-arg", "in_chans=1"]
    built = ["vit_tiny_patch16_224", *size, *small, "--model-arg", "num_classes=10"]
    few = ["--data", "digits", "--limit", "64"]
    large, lean = chain.folder / "large", chain.folder / "large-lean"
    trained = invoke("train", *built, *few, "--convert", "--epochs", "1", "--batch-size", "32", "--out", large)
    assert trained.exit_code == 0, trained.output
    with_recovery = ["--with", "evit:blocks=[0]", "--recover", "1", "--no-measure"]
    compressed = invoke("compress", large, *few, *with_recovery, "--out", lean)
    assert compressed.exit_code == 0, compressed.output
    measured = invoke("measure", *built, "--against", lean, *few, "--convert", "--rounds", "3", "--batch", "1")
    assert measured.exit_code == 0, measured.output


MEASURED = """
import sys
sys.argv = ["leanvit", "measure", sys.argv[1], "--data", "digits", "--limit", "20", "--rounds", "3", "--batch", "1"]
import leanvit.cli.ending as ending
def check(code):
    heavy = {"sklearn", "scipy", "pandas", "pyarrow", "datasets", "plotly", "jinja2", "openvino", "nncf", "onnx",
             "onnxruntime", "matplotlib"} & set(sys.modules)
    assert not code and not heavy, (code, heavy)
ending.leave = check
from leanvit.cli.main import main
assert "torch" not in sys.modules
main()
"""


def test_measuring_a_run_imports_what_it_needs_and_no_more(chain, tmp_path) -> None:
    run = shutil.copytree(chain.folder / "dense", tmp_path / "dense")  # the measurement is recorded in it
    done = subprocess.run([sys.executable, "-c", MEASURED, str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
