"""Networks exported by PyTorch answer in Educe as they do in PyTorch."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest

import educe

torch = pytest.importorskip("torch", reason="PyTorch is installed by make test-parity")
from torch import nn  # noqa: E402

pytestmark = pytest.mark.parity


class Residual(nn.Module):
    """A small ResNet: convolutions, batch norm, a residual sum, pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 16, 1), nn.SiLU())
        self.head = nn.Linear(16, 10)

    def forward(self, image):
        features = self.stem(image)
        features = features + self.body(features)
        return self.head(features.mean((2, 3)))


class Recurrent(nn.Module):
    """Embedding, LSTM, GRU, and a classifier on the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 12)
        self.lstm = nn.LSTM(12, 20, num_layers=2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(40, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        features, _ = self.lstm(self.embedding(ids))
        features, _ = self.gru(features)
        return self.head(features[:, -1])


class Attention(nn.Module):
    """One transformer block with layer norm and GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.project = nn.Linear(32, 96)
        self.feed = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x):
        query, key, value = self.project(self.norm(x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + mixed.transpose(1, 2).flatten(2)
        return x + self.feed(x)


def example(name: str):
    generator = torch.Generator().manual_seed(7)
    if name == "recurrent":
        return Recurrent(), torch.randint(0, 50, (2, 9), generator=generator)
    if name == "attention":
        return Attention(), torch.randn(2, 11, 32, generator=generator)
    return Residual(), torch.randn(2, 3, 32, 32, generator=generator)


def exported(network, example_input, opset: int) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (example_input,), buffer, input_names=["x"], output_names=["y"], opset_version=opset,
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}}, dynamo=False,
        )  # fmt: skip
    return buffer.getvalue()


@pytest.mark.parametrize("engine", ["native", "onnxruntime", "reference"])
@pytest.mark.parametrize("opset", [14, 17])
@pytest.mark.parametrize("name", ["residual", "recurrent", "attention"])
def test_an_exported_network_answers_the_same(name: str, opset: int, engine: str) -> None:
    torch.manual_seed(3)
    network, x = example(name)
    network.eval()
    model = educe.load(exported(network, x, opset))
    assert not model.notes
    exe = educe.compile(model, engine=engine)
    for batch in (x, x[:1]):
        with torch.no_grad():
            expected = network(batch).numpy()
        np.testing.assert_allclose(exe.run({"x": batch.numpy()})["y"], expected, rtol=1e-4, atol=1e-5)


def test_the_spectrum_is_that_of_torch() -> None:
    from educe.model.card import SpectrumInput
    from educe.model.spectrum import Spectrum, mel_filters

    rules = SpectrumInput("log-mel", frame_samples=400, hop_samples=160, fft_size=400, power=2, mel_bins=80)
    sound = np.random.default_rng(5).standard_normal(16_000).astype(np.float32)
    window = torch.hann_window(400, periodic=True)
    complex_spectrum = torch.stft(
        torch.from_numpy(sound), 400, 160, window=window, center=False, return_complex=True
    )
    energies = complex_spectrum.abs().square().numpy().T @ np.asarray(mel_filters(rules, 8_000.0, 16_000))
    expected = np.log(energies + rules.log_floor)
    np.testing.assert_allclose(Spectrum(rules, 16_000)(sound), expected, rtol=1e-3, atol=1e-3)


def test_preprocessing_is_that_of_torch(zoo: Path) -> None:
    from PIL import Image

    from educe.model.card import ImageInput
    from educe.tasks.image_input import ImageTransform

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    spec = ImageInput(size=(224, 224), fit="stretch", mean=mean, std=std)
    with Image.open(zoo / "images" / "zebra.jpeg") as photo:
        photo = photo.convert("RGB")
        found, _ = ImageTransform(spec, np.dtype(np.float32))([photo])
        resized = np.array(photo.resize((224, 224), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(resized).permute(2, 0, 1).float() / 255
    expected = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    np.testing.assert_allclose(found[0], expected.numpy(), rtol=1e-5, atol=1e-6)
