from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from limner.cli import app
from limner.errors import DataError, WeightsError
from limner.evaluate.clip_score import CLIPFolder, clip_score, score

TEXTS = ("a red cat", "two dogs above a tree")


def test_the_score_is_two_and_a_half_cosines_and_never_negative() -> None:
    pictures = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [0.0, -1.0], [1.0, 0.0]])
    assert clip_score(pictures, texts).tolist() == pytest.approx([2.5, 0.0, 2.5 / 2**0.5])
    with pytest.raises(DataError, match="not finite"):
        clip_score(pictures * torch.inf, texts)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, transformers.CLIPModel]:
    """A CLIP of random weights as transformers writes it."""
    shared = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        text_config={**shared, "vocab_size": 49_408, "eos_token_id": 49_407, "projection_dim": 16},
        vision_config={**shared, "image_size": 28, "patch_size": 7, "projection_dim": 16},
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture
def drawn(tmp_path: Path) -> list[Path]:
    """Two pictures, of other sizes than the network's."""
    generator = np.random.default_rng(0)
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.mark.parity
def test_a_folder_of_transformers_gives_its_cosines(
    published: tuple[Path, transformers.CLIPModel], drawn: list[Path]
) -> None:
    folder, model = published
    embedder = CLIPFolder(folder)
    mean, each = score(embedder, list(zip(drawn, TEXTS, strict=True)))
    levels = np.stack([np.asarray(Image.open(path)) for path in drawn]) / 255
    middle, spread = (
        np.array([0.48145466, 0.4578275, 0.40821073]),
        np.array([0.26862954, 0.26130258, 0.27577711]),
    )
    prepared = torch.from_numpy(((levels - middle) / spread).transpose(0, 3, 1, 2)).float()
    framed = [embedder.tokenizer.frame(embedder.tokenizer.encode(text))[0] for text in TEXTS]
    with torch.no_grad():
        out = model(input_ids=torch.tensor(framed), pixel_values=prepared)
    wanted: Tensor = (out.image_embeds * out.text_embeds).sum(-1)
    torch.testing.assert_close(each.float(), 2.5 * wanted.clamp_min(0), rtol=1e-4, atol=1e-5)
    assert mean == pytest.approx(float(each.mean()))


def test_the_command_takes_prompts_from_a_file_or_from_the_pictures(
    published: tuple[Path, transformers.CLIPModel], drawn: list[Path], tmp_path: Path, tiny: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(TEXTS))
    words = ["evaluate", "clip", "--clip", str(published[0])]
    done = CliRunner().invoke(app, [*words, str(tmp_path), "--prompts", str(prompts)])
    assert "over 2 pictures" in done.stdout
    out = tmp_path / "imagined"
    words_of = ["imagine", "a cat", "--model", str(tiny), "--steps", "1", "-n", "1", "--out", str(out)]
    assert CliRunner().invoke(app, words_of).exit_code == 0
    assert "over 1 pictures" in CliRunner().invoke(app, [*words, str(out)]).stdout
    few = CliRunner().invoke(app, [*words, str(out), "--prompts", str(prompts)])
    assert isinstance(few.exception, DataError)


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    for text, message in (
        ("{}", "no weights at"),
        ('{"text_config": {"hidden_size": "a"}}', "hidden_size in text_config is a whole number"),
        ('{"vision_config": {"hidden_act": "relu"}}', "quick_gelu or gelu"),
        ('{"projection_dim": 0}', "projection_dim is a whole number"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(WeightsError, match=message):
            CLIPFolder(tmp_path)
    (tmp_path / "no.png").write_bytes(b"")
    with pytest.raises(DataError, match="no pictures to score"):
        score(CLIPFolder.__new__(CLIPFolder), [])
